//! The hypervisor's own page table: built once at boot, in the boot's identity map, and never
//! changed again except for windows. Each CPU has a root of its own that shares everything but the
//! window area.

use super::pool::{self, Tables};
use super::{APIC_WINDOW, DIRECT_MAP, WINDOWS};
use crate::cpu::{apic, instructions, stack};
use addr::{FrameRange, Hfn, HostPhysical, HostVirtual, Hpa, Hpn, PAGE_BYTES};
use frames::{Audit, AuditedLeaf, Space, Uses};
use paging::{ENTRIES, Format, HostRights, Level, PageTable, PagingError, TableMemory, X86_64};

unsafe extern "C" {
    static image_start: u8;
    static text_end: u8;
    static rodata_end: u8;
    static image_end: u8;
    static mut boot_pml4: u8;
    static boot_tables_end: u8;
}

/// The frames of the image, from the first byte to the last of `.bss`.
pub fn image() -> FrameRange<HostPhysical> {
    frames_between(&raw const image_start, &raw const image_end)
}

fn frames_between(start: *const u8, end: *const u8) -> FrameRange<HostPhysical> {
    FrameRange::new(Hpa::new(start.addr() as u64).frame(), Hpa::new(end.addr() as u64).frame())
}

/// Table pages while the identity map of `entry.s` is still in force: frames of the future pool,
/// one after another.
pub struct BootTables {
    region: FrameRange<HostPhysical>,
    used: u64,
}

impl BootTables {
    /// Takes frames from the start of `region`, which lies below 4 GiB.
    pub const fn new(region: FrameRange<HostPhysical>) -> Self {
        Self { region, used: 0 }
    }

    /// Frames taken so far.
    pub const fn used(&self) -> u64 {
        self.used
    }

    fn entry(table: Hfn, index: usize) -> *mut u64 {
        (table.start().raw() as *mut u64).wrapping_add(index % ENTRIES)
    }
}

impl TableMemory for BootTables {
    fn read(&self, table: Hfn, index: usize) -> u64 {
        // SAFETY: the frame is one that `allocate` gave, identity-mapped.
        unsafe { Self::entry(table, index).read_volatile() }
    }

    fn write(&mut self, table: Hfn, index: usize, entry: u64) {
        // SAFETY: as for `read`.
        unsafe { Self::entry(table, index).write_volatile(entry) };
    }

    fn allocate(&mut self) -> Option<Hfn> {
        if self.used == self.region.count() {
            return None;
        }
        let frame = self.region.start.plus(self.used);
        self.used += 1;
        // SAFETY: the region is RAM below 4 GiB that nothing else uses, identity-mapped.
        unsafe { (frame.start().raw() as *mut u8).write_bytes(0, PAGE_BYTES) };
        Some(frame)
    }

    fn free(&mut self, _table: Hfn) {}
}

/// Builds the table that all CPUs share.
pub fn build(
    memory: &mut BootTables,
    pool: FrameRange<HostPhysical>,
) -> Result<PageTable<X86_64>, PagingError> {
    let mut table = PageTable::<X86_64>::new(memory)?;
    let sections = [
        (frames_between(&raw const image_start, &raw const text_end), HostRights::READ_EXECUTE),
        (frames_between(&raw const text_end, &raw const rodata_end), HostRights::READ),
        (frames_between(&raw const rodata_end, &raw const image_end), HostRights::READ_WRITE),
    ];
    for (frames, rights) in sections {
        let pages = FrameRange::new(Hpn::new(frames.start.raw()), Hpn::new(frames.end.raw()));
        table.map(memory, pages, frames.start, rights, Level::Page4K)?;
    }
    for guard in stack::guard_pages() {
        let removed = table.unmap(memory, FrameRange::with_count(guard.frame(), 1))?;
        // No CPU has used the new table yet.
        removed.release(memory, |due| due.unnecessary());
    }
    table.map(memory, direct_map_of(pool), pool.start, HostRights::READ_WRITE, Level::Page2M)?;
    let apic = FrameRange::with_count(APIC_WINDOW.frame(), 1);
    table.map(memory, apic, Hpa::new(apic::BASE).frame(), HostRights::DEVICE, Level::Page4K)?;
    Ok(table)
}

fn direct_map_of(pool: FrameRange<HostPhysical>) -> FrameRange<HostVirtual> {
    FrameRange::with_count(DIRECT_MAP.plus(pool.start.start().raw()).frame(), pool.count())
}

/// Has every leaf of the table that all CPUs share judged.
pub fn audit(table: &PageTable<X86_64>, audit: &mut Audit<'_, impl Uses + ?Sized>) {
    for (pages, leaf) in table.leaves(&Tables) {
        let HostRights { write, execute, user, .. } = leaf.rights;
        let frames = FrameRange::with_count(leaf.frame, pages.count());
        let (page, size) = (pages.start.raw(), leaf.level.frames());
        audit.leaf(Space::Hv, AuditedLeaf { page, frames, size, write, execute, user });
    }
}

/// A CPU's own root: the shared table's entries and an empty window area.
pub struct CpuSpace {
    /// Physical address for CR3.
    pub root: Hpa,
    /// The table page whose 512 entries are this CPU's windows.
    pub windows: Hfn,
}

impl CpuSpace {
    /// Makes a CPU's root from the shared one.
    pub fn new<M: TableMemory>(memory: &mut M, shared: Hfn) -> Option<Self> {
        let root = memory.allocate()?;
        for index in 0..ENTRIES {
            let entry = memory.read(shared, index);
            memory.write(root, index, entry);
        }
        let page = WINDOWS.frame().raw();
        let mut table = root;
        for level in [Level::Top, Level::Page1G, Level::Page2M] {
            let next = memory.allocate()?;
            memory.write(table, level.index(page), X86_64::table(next));
            table = next;
        }
        Some(Self { root: root.start(), windows: table })
    }

    /// Makes the caller use this root.
    pub fn activate(&self) {
        activate(self.root.frame());
    }
}

/// Makes the caller use `root`: a CPU's own or, for a moment, the shared one.
pub fn activate(root: Hfn) {
    // SAFETY: every root made here maps the image, hence the running code and every stack.
    unsafe { instructions::load_cr3(root.start().raw()) };
}

/// The entry that maps a window onto `frame`, writable or not.
pub fn window_entry(frame: Hfn) -> u64 {
    X86_64::leaf(frame, Level::Page4K, HostRights::READ_WRITE)
}

/// Clears the tables of `entry.s`, which map memory that is not the hypervisor's. Called when
/// every CPU runs on its own root.
pub fn forget_boot_tables() {
    let start = &raw mut boot_pml4;
    let length = (&raw const boot_tables_end).addr() - start.addr();
    // SAFETY: the bytes are the boot tables' only, and no CPU walks them any more.
    unsafe { start.write_bytes(0, length) };
}

/// Whether a frame is the hypervisor's own: image or pool.
pub fn is_own(frame: Hfn) -> bool {
    image().contains(frame) || pool::region().contains(frame)
}
