//! The Linux 64-bit boot protocol (Documentation/arch/x86/boot.rst): lays out kernel, zero page,
//! command line and first page tables in guest memory, through windows.

use super::acpi::Machine;
use super::layout::{GuestMap, LOW_PLACES, LOW_RESERVED, module_ranges};
use crate::memory::physical::Physical;
use abi::policy::Policy;
use addr::{Gpa, Hpa, PAGE_SIZE};
use boot_info::place::{Memory, overlap};
use boot_info::{BootInfo, MAX_COMMAND_LINE, Module, Role};
use core::ops::Range;

/// First page tables of the guest, an identity map of 512 GiB in 1 GiB leaves.
pub const GUEST_TABLES: Gpa = Gpa::new(LOW_RESERVED.start + 0x4000);
/// Its first GDT.
pub const GUEST_GDT: Gpa = Gpa::new(LOW_RESERVED.start + 0x6000);
/// Top of its first stack.
pub const GUEST_STACK: Gpa = Gpa::new(LOW_RESERVED.start + 0x7ff0);
const ZERO_PAGE: Hpa = Hpa::new(0x1_0000);
const COMMAND_LINE: Hpa = Hpa::new(0x1_1000);
/// Where both of them are.
pub const START_RANGE: Range<u64> = ZERO_PAGE.raw()..COMMAND_LINE.raw() + PAGE_SIZE;
const MIB: u64 = 1 << 20;

/// Offsets in the setup header and the zero page.
mod offset {
    pub const ACPI_RSDP: usize = 0x070;
    pub const E820_COUNT: usize = 0x1e8;
    pub const SETUP: usize = 0x1f1;
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

/// The first 4 KiB of a bzImage, as far as the loader needs them.
struct Setup {
    bytes: [u8; 4096],
}

impl Setup {
    fn u8(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
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
    let mut setup = Setup { bytes: [0; 4096] };
    if kernel.length < 4096 {
        return Err("the kernel is not a bzImage: the file is too short");
    }
    memory.read(kernel.start, &mut setup.bytes)?;
    if setup.u32(offset::MAGIC) != u32::from_le_bytes(*b"HdrS") {
        return Err("the kernel is not a bzImage: no setup header");
    }
    if setup.u16(offset::VERSION) < PROTOCOL_2_12
        || setup.u16(offset::XLOADFLAGS) & HAS_64BIT_ENTRY == 0
    {
        return Err("the kernel has no 64-bit entry (boot protocol 2.12)");
    }
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
    Ok(Start { entry: Gpa::new(target.raw() + 0x200), zero_page: Gpa::new(ZERO_PAGE.raw()) })
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
    let mut page = [0; 4096];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = page.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    let header_end = offset::MAGIC + usize::from(setup.u8(0x201));
    put(offset::SETUP, setup.bytes.get(offset::SETUP..header_end).unwrap_or_default());
    put(offset::LOADER, &[UNDEFINED_LOADER]);
    put(offset::LOAD_FLAGS, &[setup.u8(offset::LOAD_FLAGS) | LOADED_HIGH | CAN_USE_HEAP]);
    put(offset::CODE32_START, &low_half(target.raw())?);
    if let Some(initrd) = info.module(Role::Initrd) {
        put(offset::RAMDISK, &low_half(initrd.start.raw())?);
        put(offset::RAMDISK + 4, &low_half(initrd.length)?);
    }
    put(offset::HEAP_END, &0xfe00_u16.to_le_bytes());
    put(offset::COMMAND_LINE, &low_half(COMMAND_LINE.raw())?);
    put(offset::ACPI_RSDP, &machine.guest_rsdp.raw().to_le_bytes());
    let entries = map.len().min(E820_ENTRIES);
    put(offset::E820_COUNT, &[u8::try_from(entries).unwrap_or(0)]);
    for (index, region) in map.iter().take(entries).enumerate() {
        let at = offset::E820 + index * E820_ENTRY;
        put(at, &region.start.to_le_bytes());
        put(at + 8, &region.length.to_le_bytes());
        put(at + 16, &region.kind.to_le_bytes());
    }
    memory.write(ZERO_PAGE, &page)?;
    Ok(())
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

/// A value that the protocol stores in 32 bits.
fn low_half(value: u64) -> Result<[u8; 4], &'static str> {
    u32::try_from(value).map(u32::to_le_bytes).map_err(|_| "a boot module lies above 4 GiB")
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
