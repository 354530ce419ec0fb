//! The Linux 64-bit boot protocol (Documentation/arch/x86/boot.rst): lays out kernel, zero page,
//! command line and first page tables in guest memory, through windows.

use super::acpi::{self, Machine};
use super::layout::{GuestMap, LOW_PLACES, LOW_RESERVED, module_ranges};
use crate::memory::physical::Physical;
use crate::memory::pool::Block;
use crate::vendor;
use abi::manifest::Load;
use abi::policy::Policy;
use addr::{Gpa, Hpa, PAGE_BYTES, PAGE_SIZE};
use arrayvec::ArrayVec;
use boot_info::place::{Memory, overlap};
use boot_info::{BootInfo, MAX_COMMAND_LINE, Module, Role};
use core::ops::Range;
use spin::Once;

/// First page tables of the guest, an identity map of 512 GiB in 1 GiB leaves.
const GUEST_TABLES: Gpa = Gpa::new(LOW_RESERVED.start + 0x4000);
/// Its first GDT.
const GUEST_GDT: Gpa = Gpa::new(LOW_RESERVED.start + 0x6000);
/// Top of its first stack.
const GUEST_STACK: Gpa = Gpa::new(LOW_RESERVED.start + 0x7ff0);
const ZERO_PAGE: Hpa = Hpa::new(0x1_0000);
const COMMAND_LINE: Hpa = Hpa::new(0x1_1000);
/// Where both of them are.
pub const START_RANGE: Range<u64> = ZERO_PAGE.raw()..COMMAND_LINE.raw() + PAGE_SIZE;
/// What is laid out for a kernel where nothing else can be.
pub const LAID_OUT: [Range<u64>; 2] = [START_RANGE, LOW_RESERVED];
const MIB: u64 = 1 << 20;

/// Offsets in the setup header and the zero page.
mod offset {
    pub const ACPI_RSDP: usize = 0x070;
    /// High halves of `RAMDISK` and what follows it.
    pub const EXT_RAMDISK: usize = 0x0c0;
    pub const E820_COUNT: usize = 0x1e8;
    pub const SETUP: usize = abi::manifest::SETUP_HEADER;
    pub const HEADER_LENGTH: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const LOADER: usize = 0x210;
    pub const LOAD_FLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK: usize = 0x218;
    pub const HEAP_END: usize = 0x224;
    pub const COMMAND_LINE: usize = 0x228;
    pub const XLOADFLAGS: usize = 0x236;
    pub const INIT_SIZE: usize = 0x260;
    pub const E820: usize = 0x2d0;
}
const E820_ENTRY: usize = 20;
const E820_ENTRIES: usize = 128;
const LOADED_HIGH: u8 = 1 << 0;
const CAN_USE_HEAP: u8 = 1 << 7;
const UNDEFINED_LOADER: u8 = 0xff;
/// xloadflags: the kernel has a 64-bit entry at offset 0x200.
const HAS_64BIT_ENTRY: u16 = 1 << 0;
const PROTOCOL_2_12: u16 = 0x020c;

/// Where the guest starts.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// First instruction, in 64-bit mode.
    pub entry: Gpa,
    /// The zero page, for RSI.
    pub zero_page: Gpa,
}

impl Start {
    /// Of a kernel that is loaded at `place`.
    const fn at(place: Hpa) -> Self {
        let entry = Gpa::new(place.raw() + 0x200);
        Self { entry, zero_page: Gpa::new(ZERO_PAGE.raw()) }
    }

    /// How the first CPU starts there.
    pub const fn state(self) -> vendor::Start {
        first_state(self.entry, self.zero_page.raw())
    }
}

/// How every CPU of the guest starts.
pub const fn first_state(entry: Gpa, rsi: u64) -> vendor::Start {
    vendor::Start { entry, rsi, tables: GUEST_TABLES, gdt: GUEST_GDT, stack: GUEST_STACK }
}

/// The setup header of a bzImage, with zeros behind it.
struct Setup {
    bytes: [u8; 128],
}

impl Setup {
    /// Reads it.
    fn of(memory: Physical<'_>, kernel: Module) -> Result<Self, &'static str> {
        let mut bytes = [0; 128];
        if kernel.length < PAGE_SIZE {
            return Err("the kernel is not a bzImage: the file is too short");
        }
        memory.read(kernel.start.plus(offset::SETUP as u64), &mut bytes)?;
        let mut setup = Self { bytes };
        let end = offset::MAGIC - offset::SETUP + usize::from(setup.u8(offset::HEADER_LENGTH));
        setup.bytes.get_mut(end..).unwrap_or_default().fill(0);
        Ok(setup)
    }

    /// Whether the hypervisor can start a kernel of this header.
    fn check(&self) -> Result<(), &'static str> {
        if self.u32(offset::MAGIC) != u32::from_le_bytes(*b"HdrS") {
            return Err("the kernel is not a bzImage: no setup header");
        }
        if self.u16(offset::VERSION) < PROTOCOL_2_12
            || self.u16(offset::XLOADFLAGS) & HAS_64BIT_ENTRY == 0
        {
            return Err("the kernel has no 64-bit entry (boot protocol 2.12)");
        }
        Ok(())
    }

    fn u8(&self, at: usize) -> u8 {
        let at = at.checked_sub(offset::SETUP);
        at.and_then(|at| self.bytes.get(at)).copied().unwrap_or(0)
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.u8(at), self.u8(at + 1)])
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }
}

/// Loads the kernel module.
///
/// # Errors
/// A sentence for the person who started the machine.
pub fn load(
    memory: Physical<'_>,
    info: &BootInfo,
    kernel: Module,
    map: &GuestMap,
    machine: &Machine,
    policy: &Policy,
) -> Result<Start, &'static str> {
    let setup = Setup::of(memory, kernel)?;
    setup.check()?;
    let sectors = match setup.u8(offset::SETUP) {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let payload = (sectors + 1) * 512;
    let length = kernel.length.checked_sub(payload).ok_or("the kernel file is truncated")?;
    let needed = u64::from(setup.u32(offset::INIT_SIZE)).max(length).next_multiple_of(2 * MIB);
    let target = choose_place(info, map, needed)
        .ok_or("too little memory: no place for the kernel clear of the boot modules")?;
    memory.copy(kernel.start.plus(payload), target, length)?;
    write_zero_page(memory, info, &setup, target, map, machine)?;
    write_command_line(memory, info, policy)?;
    write_first_tables(memory)?;
    if policy.kexec_in_force() {
        keep(memory)?;
    }
    Ok(Start::at(target))
}

/// The lowest 2 MiB multiple from 16 MiB on with `length` bytes of RAM free of modules.
fn choose_place(info: &BootInfo, map: &GuestMap, length: u64) -> Option<Hpa> {
    let taken = module_ranges(info);
    let memory = Memory { regions: map, taken: &taken };
    memory.lowest(16 * MIB, length, 2 * MIB).map(Hpa::new)
}

/// Moves boot modules away from low memory that will be written to.
///
/// # Errors
/// There is no other place.
pub fn clear_low_places(
    memory: Physical<'_>,
    info: &mut BootInfo,
    map: &GuestMap,
) -> Result<(), &'static str> {
    for index in 0..info.modules.len() {
        let Some(module) = info.modules.get(index).copied() else { break };
        if !LOW_PLACES.iter().any(|place| overlap(place, &module.range())) {
            continue;
        }
        let target = choose_place(info, map, module.length)
            .ok_or("too little memory for the boot modules")?;
        memory.copy(module.start, target, module.length)?;
        if let Some(module) = info.modules.get_mut(index) {
            module.start = target;
        }
    }
    Ok(())
}

fn write_zero_page(
    memory: Physical<'_>,
    info: &BootInfo,
    setup: &Setup,
    target: Hpa,
    map: &GuestMap,
    machine: &Machine,
) -> Result<(), &'static str> {
    let mut page = [0; PAGE_BYTES];
    let initrd = info.module(Role::Initrd).map_or(0..0, |module| module.range());
    fill(&mut page, setup, target, initrd);
    put(&mut page, offset::ACPI_RSDP, &machine.guest_rsdp.raw().to_le_bytes());
    let entries = map.len().min(E820_ENTRIES);
    put(&mut page, offset::E820_COUNT, &[u8::try_from(entries).unwrap_or(0)]);
    for (index, region) in map.iter().take(entries).enumerate() {
        let at = offset::E820 + index * E820_ENTRY;
        put(&mut page, at, &region.start.to_le_bytes());
        put(&mut page, at + 8, &region.length.to_le_bytes());
        put(&mut page, at + 16, &region.kind.to_le_bytes());
    }
    memory.write(ZERO_PAGE, &page)?;
    Ok(())
}

fn put(page: &mut [u8; PAGE_BYTES], at: usize, bytes: &[u8]) {
    if let Some(place) = page.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Writes what depends on kernel and initial file system.
fn fill(page: &mut [u8; PAGE_BYTES], setup: &Setup, kernel: Hpa, initrd: Range<u64>) {
    put(page, offset::SETUP, &setup.bytes);
    put(page, offset::LOADER, &[UNDEFINED_LOADER]);
    put(page, offset::LOAD_FLAGS, &[setup.u8(offset::LOAD_FLAGS) | LOADED_HIGH | CAN_USE_HEAP]);
    // For the 32-bit entry, which is not used.
    put(page, offset::CODE32_START, &u32::try_from(kernel.raw()).unwrap_or(0).to_le_bytes());
    let fields = [initrd.start, initrd.end.saturating_sub(initrd.start)];
    for (index, value) in fields.map(u64::to_le_bytes).iter().enumerate() {
        let (low, high) = value.split_at(4);
        put(page, offset::RAMDISK + index * 4, low);
        put(page, offset::EXT_RAMDISK + index * 4, high);
    }
    put(page, offset::HEAP_END, &0xfe00_u16.to_le_bytes());
    put(page, offset::COMMAND_LINE, &COMMAND_LINE.raw().to_le_bytes()[..4]);
}

/// The words by which the policy is told to the kernel, then the loader's: behind these there may be a
/// `--`, and words for the first process.
fn write_command_line(
    memory: Physical<'_>,
    info: &BootInfo,
    policy: &Policy,
) -> Result<(), &'static str> {
    let mut length = 0;
    let told = policy.kernel_arguments().map(|word| -> &str { word });
    for word in told.chain([info.command_line.as_str()]) {
        if length + word.len() > MAX_COMMAND_LINE {
            return Err("the kernel's command line is too long, with what the policy adds to it");
        }
        memory.write(COMMAND_LINE.plus(length as u64), word.as_bytes())?;
        length += word.len();
    }
    memory.write(COMMAND_LINE.plus(length as u64), &[0])?;
    Ok(())
}

fn write_first_tables(memory: Physical<'_>) -> Result<(), &'static str> {
    const PRESENT_WRITE: u64 = 3;
    const LARGE: u64 = 0x83;
    let top = Hpa::new(GUEST_TABLES.raw());
    let directory = top.plus(4096);
    memory.clear(top, 8192)?;
    memory.write_u64(top, directory.raw() | PRESENT_WRITE)?;
    for index in 0..512 {
        memory.write_u64(directory.plus(index * 8), index << 30 | LARGE)?;
    }
    let gdt = Hpa::new(GUEST_GDT.raw());
    for (index, descriptor) in
        [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff].iter().enumerate()
    {
        memory.write_u64(gdt.plus(index as u64 * 8), *descriptor)?;
    }
    Ok(())
}

/// The pages of low memory that are laid out for a kernel, the zero page apart.
fn low_pages() -> impl Iterator<Item = Hpa> {
    [COMMAND_LINE].into_iter().chain(LOW_RESERVED.step_by(PAGE_BYTES).map(Hpa::new))
}

/// What was laid out for the first kernel, as it was before that ran.
struct Kept {
    zero_page: &'static [u8],
    /// [`low_pages`].
    low: ArrayVec<&'static [u8], 9>,
    /// The firmware's tables, and what they come to. The guest may write them, and a kernel does what
    /// they say before it is locked.
    tables: acpi::Tables,
    fingerprint: [u8; 32],
}

static KEPT: Once<Kept> = Once::new();

#[inline(never)]
fn keep(memory: Physical<'_>) -> Result<(), &'static str> {
    let page = |start| {
        let copy = Block::take(1).ok_or("the pool is too small")?.leak();
        memory.read(start, copy)?;
        Ok::<&[u8], &'static str>(copy)
    };
    let zero_page = page(ZERO_PAGE)?;
    let low = low_pages().map(page).collect::<Result<_, _>>()?;
    let tables = acpi::tables(memory)?;
    let fingerprint = acpi::fingerprint(memory, &tables)?;
    let kept = Kept { zero_page, low, tables, fingerprint };
    KEPT.call_once(|| kept);
    Ok(())
}

/// Lays low memory out again, as it was for the first kernel, for one that its predecessor has put at
/// `place`.
///
/// # Errors
/// A sentence that says what is in the way.
#[inline(never)]
pub fn load_again(
    memory: Physical<'_>,
    load: &Load,
    place: Gpa,
    initrd: Range<u64>,
) -> Result<Start, &'static str> {
    const NOT_KEPT: &str = "nothing was kept for another kernel";
    let setup = Setup { bytes: load.setup_header };
    let kept = KEPT.get().ok_or(NOT_KEPT)?;
    let mut page = *kept.zero_page.first_chunk().ok_or(NOT_KEPT)?;
    fill(&mut page, &setup, place.identity(), initrd);
    memory.write(ZERO_PAGE, &page)?;
    low_pages().zip(&kept.low).try_for_each(|(start, page)| memory.write(start, page))?;
    if acpi::fingerprint(memory, &kept.tables)? != kept.fingerprint {
        return Err("the firmware's ACPI tables are not what they were at the first boot");
    }
    Ok(Start::at(place.identity()))
}

/// Whether the kernel of a manifest could be started.
///
/// # Errors
/// A sentence for the person who started the machine.
pub fn check(load: &Load) -> Result<(), &'static str> {
    Setup { bytes: load.setup_header }.check()
}
