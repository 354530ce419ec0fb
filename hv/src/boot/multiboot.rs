//! What the boot loader said, copied into our own memory while the identity map of `entry.s` still
//! stands. QEMU's `-kernel` speaks Multiboot 1 (section 3.3), GRUB Multiboot 2.

use boot_info::{BootInfo, Region, multiboot2};

/// What a Multiboot 1 loader leaves in EAX.
const MAGIC: u32 = 0x2bad_b002;

const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MEMORY_MAP: u32 = 1 << 6;

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
    match magic {
        MAGIC => read_first(address),
        multiboot2::MAGIC => read_second(address),
        _ => Err("not started by a Multiboot loader"),
    }
}

fn read_second(address: u64) -> Result<BootInfo, &'static str> {
    const MOST: usize = 1 << 20;
    let length = read_u32(address) as usize;
    if length > MOST {
        return Err("the boot loader's Multiboot 2 information is unreasonably long");
    }
    // SAFETY: as for `read_u32`; nothing writes to the bytes until they are copied.
    multiboot2::parse(unsafe { core::slice::from_raw_parts(address as *const u8, length) })
}

fn read_first(address: u64) -> Result<BootInfo, &'static str> {
    let flags = read_u32(address);
    if flags & HAS_MEMORY_MAP == 0 {
        return Err("the boot loader gave no memory map");
    }
    let mut info = BootInfo::default();
    read_regions(address, &mut info)?;
    if flags & HAS_MODULES != 0 {
        let (count, list) = (read_u32(address + 20), u64::from(read_u32(address + 24)));
        for index in 0..u64::from(count.min(16)) {
            let entry = list + index * 16;
            let range = u64::from(read_u32(entry))..u64::from(read_u32(entry + 4));
            info.add_module(read_string(u64::from(read_u32(entry + 8))), range)?;
        }
    }
    if flags & HAS_COMMAND_LINE != 0 {
        info.set_command_line(read_string(u64::from(read_u32(address + 16))).chars())?;
    }
    Ok(info)
}

fn read_regions(address: u64, info: &mut BootInfo) -> Result<(), &'static str> {
    let (length, map) = (u64::from(read_u32(address + 44)), u64::from(read_u32(address + 48)));
    let mut offset = 0;
    while offset + 24 <= length {
        let entry = map + offset;
        info.add_region(Region {
            start: read_u64(entry + 4),
            length: read_u64(entry + 12),
            kind: read_u32(entry + 20),
        })?;
        offset += u64::from(read_u32(entry)) + 4;
    }
    Ok(())
}
