//! What the boot loader said (Multiboot 1, section 3.3), copied into our own memory while the
//! identity map of `entry.s` still stands.

use addr::Hpa;
use arrayvec::{ArrayString, ArrayVec};

/// What the loader leaves in EAX.
pub const MAGIC: u32 = 0x2bad_b002;

const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MEMORY_MAP: u32 = 1 << 6;

/// A region of the machine's memory map, in the terms of the e820 BIOS call.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// 1: RAM; anything else is not.
    pub kind: u32,
}

impl Region {
    /// One past the last byte.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
    /// Whether this is RAM.
    pub const fn is_ram(&self) -> bool {
        self.kind == 1
    }
}

/// What a boot module is for; the last word of its string says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The kernel, a bzImage.
    Kernel,
    /// The initial RAM disk.
    Initrd,
    /// The kernel's manifest.
    Manifest,
    /// The policy record.
    Policy,
}

/// A boot module.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// What it is for.
    pub role: Role,
    /// First byte.
    pub start: Hpa,
    /// Bytes.
    pub length: u64,
}

/// Everything that the boot needs to know.
pub struct BootInfo {
    /// The memory map, in the loader's order.
    pub regions: ArrayVec<Region, 64>,
    /// The modules.
    pub modules: ArrayVec<Module, 8>,
    /// The guest's command line.
    pub command_line: ArrayString<2047>,
}

impl BootInfo {
    /// The module with this role.
    pub fn module(&self, role: Role) -> Option<Module> {
        self.modules.iter().copied().find(|module| module.role == role)
    }
}

fn read_u32(address: u64) -> u32 {
    // SAFETY: the loader's structures lie below 4 GiB, where the boot's identity map covers all.
    unsafe { (address as *const u32).read_unaligned() }
}

fn read_u64(address: u64) -> u64 {
    u64::from(read_u32(address)) | u64::from(read_u32(address + 4)) << 32
}

/// A NUL-terminated string of at most 4096 bytes.
fn read_string(address: u64) -> &'static str {
    let start = address as *const u8;
    let mut length = 0;
    // SAFETY: as for `read_u32`; the length is bounded.
    while length < 4096 && unsafe { start.add(length).read() } != 0 {
        length += 1;
    }
    // SAFETY: the bytes were just read, and stay untouched until the boot information is copied.
    let bytes = unsafe { core::slice::from_raw_parts(start, length) };
    core::str::from_utf8(bytes).unwrap_or_default()
}

/// Copies the loader's information at `address`.
///
/// # Errors
/// A sentence for the person who started the machine.
pub fn read(magic: u32, address: u64) -> Result<BootInfo, &'static str> {
    if magic != MAGIC {
        return Err("not started by a Multiboot loader");
    }
    let flags = read_u32(address);
    if flags & HAS_MEMORY_MAP == 0 {
        return Err("the boot loader gave no memory map");
    }
    if flags & HAS_MODULES == 0 {
        return Err("the boot loader gave no modules: a kernel and its manifest are needed");
    }
    let mut info = BootInfo {
        regions: ArrayVec::new(),
        modules: ArrayVec::new(),
        command_line: ArrayString::new(),
    };
    read_regions(address, &mut info)?;
    let (count, list) = (read_u32(address + 20), u64::from(read_u32(address + 24)));
    for index in 0..u64::from(count.min(16)) {
        let entry = list + index * 16;
        let (start, end) = (u64::from(read_u32(entry)), u64::from(read_u32(entry + 4)));
        let text = read_string(u64::from(read_u32(entry + 8)));
        let role = match text.split_ascii_whitespace().next_back() {
            Some("kernel") => Role::Kernel,
            Some("initrd") => Role::Initrd,
            Some("manifest") => Role::Manifest,
            Some("policy") => Role::Policy,
            _ => {
                return Err(
                    "a boot module's string must end in kernel, initrd, manifest or policy",
                );
            }
        };
        if info.module(role).is_some() {
            return Err("two boot modules have the same role");
        }
        let module = Module { role, start: Hpa::new(start), length: end.saturating_sub(start) };
        info.modules.try_push(module).map_err(|_| "too many boot modules")?;
    }
    if flags & HAS_COMMAND_LINE != 0 {
        let text = read_string(u64::from(read_u32(address + 16)));
        let guest = text.split_once(" -- ").map_or("", |(_, guest)| guest);
        info.command_line.try_push_str(guest).map_err(|_| "the command line is too long")?;
    }
    Ok(info)
}

fn read_regions(address: u64, info: &mut BootInfo) -> Result<(), &'static str> {
    let (length, map) = (u64::from(read_u32(address + 44)), u64::from(read_u32(address + 48)));
    let mut offset = 0;
    while offset + 24 <= length {
        let entry = map + offset;
        let region = Region {
            start: read_u64(entry + 4),
            length: read_u64(entry + 12),
            kind: read_u32(entry + 20),
        };
        info.regions.try_push(region).map_err(|_| "the memory map has too many entries")?;
        offset += u64::from(read_u32(entry)) + 4;
    }
    Ok(())
}
