//! The hypervisor's address spaces, built of subtrees that are shared.
//!
//! What always holds:
//! - Every CPU has a root of its own. It links the image, the direct map and the device registers,
//!   which are the same for all CPUs, and its own windows, which no other CPU has.
//! - A task's table links the image only, whose leaves are the supervisor's: no direct map, no
//!   windows, no registers.
//! - The image and the registers never change once they are built. So an access to them needs no
//!   flush, whatever table is in force.

use super::pool::{self, Tables};
use super::{APIC_WINDOW, SCRATCH, WINDOWS, flush};
use crate::cpu::{apic, instructions, stack};
use abi::MAX_CPUS;
use addr::{FrameRange, Hfn, HostPhysical, Hpa, Hpn, Hva};
use arrayvec::ArrayVec;
use paging::{Entry, Format, HostRights, Level, PageTable, PagingError, TableMemory, X86_64};
use spin::mutex::SpinMutex;

unsafe extern "C" {
    static image_start: u8;
    static text_end: u8;
    static rodata_end: u8;
    static image_end: u8;
    static mut boot_pml4: u8;
    static boot_tables_end: u8;
}

/// What all CPUs share, and what each has of its own.
struct Spaces {
    image: PageTable<X86_64>,
    devices: PageTable<X86_64>,
    /// The CPUs' roots, in their order.
    cpus: ArrayVec<PageTable<X86_64>, MAX_CPUS>,
}

static SPACES: SpinMutex<Option<Spaces>> = SpinMutex::new(None);

/// The frames of the image, from the first byte to the last of `.bss`.
pub fn image() -> FrameRange<HostPhysical> {
    frames_between(&raw const image_start, &raw const image_end)
}

fn frames_between(start: *const u8, end: *const u8) -> FrameRange<HostPhysical> {
    FrameRange::new(Hpa::new(start.addr() as u64).frame(), Hpa::new(end.addr() as u64).frame())
}

/// Builds what all CPUs share, but for the direct map.
///
/// # Errors
/// Out of memory.
pub fn build() -> Result<(), PagingError> {
    let memory = &mut Tables;
    let mut image = PageTable::<X86_64>::new_subtree(memory, Hpn::new(0), Level::Page2M)?;
    let sections = [
        (frames_between(&raw const image_start, &raw const text_end), HostRights::READ_EXECUTE),
        (frames_between(&raw const text_end, &raw const rodata_end), HostRights::READ),
        (frames_between(&raw const rodata_end, &raw const image_end), HostRights::READ_WRITE),
    ];
    for (frames, rights) in sections {
        let pages = FrameRange::new(Hpn::new(frames.start.raw()), Hpn::new(frames.end.raw()));
        image.map(memory, pages, frames.start, rights, Level::Page4K)?;
    }
    for guard in stack::guard_pages() {
        let removed = image.unmap(memory, FrameRange::with_count(guard.frame(), 1))?;
        // No CPU has used the new table yet.
        removed.release(memory, |due| due.unnecessary());
    }
    let mut devices = subtree_at(APIC_WINDOW, Level::Page1G)?;
    let apic = FrameRange::with_count(APIC_WINDOW.frame(), 1);
    devices.map(memory, apic, Hpa::new(apic::BASE).frame(), HostRights::DEVICE, Level::Page4K)?;
    *SPACES.lock() = Some(Spaces { image, devices, cpus: ArrayVec::new() });
    Ok(())
}

fn subtree_at(start: Hva, level: Level) -> Result<PageTable<X86_64>, PagingError> {
    PageTable::new_subtree(&mut Tables, start.frame(), level)
}

/// Does `work` with the spaces, which are built already.
fn with_spaces<T>(
    work: impl FnOnce(&mut Spaces) -> Result<T, PagingError>,
) -> Result<T, PagingError> {
    work(SPACES.lock().as_mut().ok_or(PagingError::OutOfMemory)?)
}

/// A CPU's own root and windows.
pub struct CpuSpace {
    cpu: usize,
    root: Hfn,
    windows: Hfn,
}

impl CpuSpace {
    /// Makes the space of CPU `cpu`. Spaces are made in the order of the CPUs.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(cpu: usize) -> Result<Self, PagingError> {
        with_spaces(|spaces| {
            let mut root = PageTable::new(&mut Tables)?;
            root.link(&mut Tables, &mut spaces.image)?;
            pool::link_direct_map(&mut root)?;
            root.link(&mut Tables, &mut spaces.devices)?;
            let mut windows = subtree_at(WINDOWS, Level::Page4K)?;
            root.link(&mut Tables, &mut windows)?;
            let mut scratch = subtree_at(SCRATCH, Level::Page4K)?;
            root.link(&mut Tables, &mut scratch)?;
            let space = Self { cpu, root: root.root(), windows: windows.root() };
            spaces.cpus.try_push(root).map_err(|_| PagingError::OutOfMemory)?;
            // The windows' tables stay linked for ever.
            Ok(space)
        })
    }

    /// The table page whose 512 entries are this CPU's windows.
    pub fn windows(&self) -> Hfn {
        self.windows
    }

    /// Makes the caller, which is this CPU, use this root.
    pub fn activate(&self) {
        flush::enter(self.cpu);
        // SAFETY: the root maps the image, hence the running code and every stack.
        unsafe { instructions::load_cr3(self.root.start().raw()) };
    }
}

/// The table page whose entries are the calling CPU's scratch windows.
pub(super) fn own_scratch() -> Option<Hfn> {
    let page = SCRATCH.frame().raw();
    let mut table = Hpa::new(instructions::read_cr3()).frame();
    for level in [Level::Top, Level::Page1G, Level::Page2M] {
        match X86_64::decode(Tables.read(table, level.index(page)), level) {
            Entry::Table(next) | Entry::Shared(next) => table = next,
            Entry::Empty | Entry::Leaf { .. } => return None,
        }
    }
    Some(table)
}

/// A table for a task: it maps the image, for the supervisor, in the first GiB, and nothing else.
///
/// # Errors
/// Out of memory.
pub fn new_task_table() -> Result<PageTable<X86_64>, PagingError> {
    with_spaces(|spaces| {
        let mut table = PageTable::new(&mut Tables)?;
        match table.link(&mut Tables, &mut spaces.image) {
            Ok(()) => Ok(table),
            Err(error) => {
                // Nothing is linked and no CPU has used it, so it can be destroyed.
                let _ = table.destroy(&mut Tables, |due| due.unnecessary());
                Err(error)
            }
        }
    })
}

/// Gives a task's table back, which no CPU has in force any more, with all its pages. The frames
/// that it maps the caller has given back before: now they are zeroed. The caller is CPU `cpu` and
/// holds no lock.
pub fn destroy_task_table(cpu: usize, mut table: PageTable<X86_64>) {
    let unlinked = with_spaces(|spaces| {
        let removed = table.unlink(&mut Tables, &mut spaces.image)?;
        // Every table maps the image, in the same way, so nobody remembers anything wrong.
        removed.release(&mut Tables, |due| due.unnecessary());
        Ok(())
    });
    if unlinked.is_ok() {
        // It has no links left, so it is not handed back.
        let _ = table.destroy(&mut Tables, |due| flush::all(cpu, due));
    }
    pool::tidy(cpu);
}

/// Shows the roots of all CPUs, in their order, to `look`; nothing but windows changes meanwhile.
pub(super) fn with_roots<T>(look: impl FnOnce(&[PageTable<X86_64>]) -> T) -> T {
    let spaces = SPACES.lock();
    look(spaces.as_ref().map_or(&[], |spaces| &spaces.cpus))
}

/// Clears the tables of `entry.s`, which map memory that is not the hypervisor's. Called when
/// every CPU runs on its own root.
pub fn forget_boot_tables() {
    let start = &raw mut boot_pml4;
    let length = (&raw const boot_tables_end).addr() - start.addr();
    // SAFETY: the bytes are the boot tables' only, and no CPU walks them any more.
    unsafe { start.write_bytes(0, length) };
}
