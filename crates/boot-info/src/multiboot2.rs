//! Boot information of Multiboot 2 (specification 2.0, section 3.6), as GRUB gives it.
//!
//! Every length in it is checked; tags that are not needed are skipped.

use crate::{BootInfo, RSDP_BYTES, Region};

/// What the loader leaves in EAX.
pub const MAGIC: u32 = 0x36d7_6289;
/// Bytes before the first tag; the first four are the length of the whole.
pub const HEADER_BYTES: usize = 8;

/// Types of tags.
mod tag {
    pub const END: u32 = 0;
    pub const COMMAND_LINE: u32 = 1;
    pub const MODULE: u32 = 3;
    pub const MEMORY_MAP: u32 = 6;
    pub const OLD_RSDP: u32 = 14;
    pub const NEW_RSDP: u32 = 15;
}
const TAG_BYTES: usize = 8;
/// Type of a region that is not to be used.
const RESERVED: u32 = 2;
const DAMAGED: &str = "the boot loader's Multiboot 2 information is damaged";

/// Reads the whole boot information.
///
/// # Errors
/// A sentence for the person who started the machine.
pub fn parse(information: &[u8]) -> Result<BootInfo, &'static str> {
    let mut info = BootInfo::default();
    let mut rest = information.get(HEADER_BYTES..).ok_or(DAMAGED)?;
    loop {
        let (kind, length) = (u32_at(rest, 0)?, u32_at(rest, 4)? as usize);
        if kind == tag::END {
            break;
        }
        let payload = rest.get(TAG_BYTES..length).ok_or(DAMAGED)?;
        match kind {
            tag::COMMAND_LINE => info.set_command_line(unquoted(string(payload)))?,
            tag::MODULE => {
                let range = u64::from(u32_at(payload, 0)?)..u64::from(u32_at(payload, 4)?);
                info.add_module(string(payload.get(8..).ok_or(DAMAGED)?), range)?;
            }
            tag::MEMORY_MAP => add_regions(&mut info, payload)?,
            // The newer of the two is preferred, whichever comes first.
            tag::OLD_RSDP if info.rsdp.is_some() => {}
            tag::OLD_RSDP | tag::NEW_RSDP => info.rsdp = Some(rsdp(payload)),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(8)..).ok_or(DAMAGED)?;
    }
    if info.regions.is_empty() {
        return Err("the boot loader gave no memory map");
    }
    Ok(info)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, &'static str> {
    let four = bytes.get(at..).and_then(|rest| rest.first_chunk());
    four.map(|four| u32::from_le_bytes(*four)).ok_or(DAMAGED)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, &'static str> {
    let eight = bytes.get(at..).and_then(|rest| rest.first_chunk());
    eight.map(|eight| u64::from_le_bytes(*eight)).ok_or(DAMAGED)
}

/// The text before the first NUL; nothing if it is not UTF-8.
fn string(bytes: &[u8]) -> &str {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    core::str::from_utf8(text).unwrap_or_default()
}

/// The command line as it was before GRUB put a backslash before every quote and backslash in it.
fn unquoted(text: &str) -> impl Iterator<Item = char> + Clone {
    let mut rest = text.chars();
    core::iter::from_fn(move || {
        let first = rest.next()?;
        let mut ahead = rest.clone();
        match ahead.next() {
            Some(second @ ('\\' | '\'' | '"')) if first == '\\' => {
                rest = ahead;
                Some(second)
            }
            _ => Some(first),
        }
    })
}

fn add_regions(info: &mut BootInfo, payload: &[u8]) -> Result<(), &'static str> {
    let size = u32_at(payload, 0)? as usize;
    let entries = payload.get(8..).filter(|_| size >= 20).ok_or(DAMAGED)?;
    for entry in entries.chunks_exact(size) {
        let (start, length) = (u64_at(entry, 0)?, u64_at(entry, 8)?);
        let kind = match u32_at(entry, 16)? {
            known @ 1..=5 => known,
            // Some loaders have types of their own, for example for UEFI's runtime services.
            _ => RESERVED,
        };
        info.add_region(Region { start, length, kind })?;
    }
    Ok(())
}

fn rsdp(payload: &[u8]) -> [u8; RSDP_BYTES] {
    let mut copy = [0; RSDP_BYTES];
    for (to, from) in copy.iter_mut().zip(payload) {
        *to = *from;
    }
    copy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;
    use proptest::prelude::*;
    use std::string::String;
    use std::vec::Vec;

    fn information(tags: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = std::vec![0; HEADER_BYTES];
        for (kind, payload) in tags.iter().chain([&(tag::END, Vec::new())]) {
            bytes.extend(kind.to_le_bytes());
            bytes.extend((u32::try_from(payload.len()).unwrap() + 8).to_le_bytes());
            bytes.extend(payload);
            bytes.resize(bytes.len().next_multiple_of(8), 0xcc);
        }
        bytes
    }

    fn memory_map(entry_bytes: u32, regions: &[Region]) -> (u32, Vec<u8>) {
        let mut payload = Vec::from(entry_bytes.to_le_bytes());
        payload.extend([0; 4]);
        for region in regions {
            let mut entry = Vec::from(region.start.to_le_bytes());
            entry.extend(region.length.to_le_bytes());
            entry.extend(region.kind.to_le_bytes());
            entry.resize(entry_bytes as usize, 0);
            payload.extend(entry);
        }
        (tag::MEMORY_MAP, payload)
    }

    fn text(kind: u32, numbers: &[u32], text: &str) -> (u32, Vec<u8>) {
        let mut payload: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        payload.extend(text.bytes().chain([0]));
        (kind, payload)
    }

    const RAM: Region = Region { start: 0, length: 0x9_f000, kind: 1 };
    const HOLE: Region = Region { start: 0xe_0000, length: 0x2_0000, kind: 2 };

    #[test]
    fn everything_is_found() {
        let rsdp = |revision| std::vec![revision; if revision == 0 { 20 } else { 36 }];
        for (entry_bytes, rsdps) in [(24, [14, 15]), (32, [15, 14])] {
            let mut tags = Vec::from([
                text(tag::COMMAND_LINE, &[], r#"-- dyndbg=\"file x\" a=\\ b=\x41"#),
                text(99, &[1, 2, 3], "unknown"),
                text(tag::MODULE, &[0x20_0000, 0x20_1234], "kernel"),
                memory_map(entry_bytes, &[RAM, HOLE]),
                text(tag::MODULE, &[0x30_0000, 0x30_0001], "/boot/initrd initrd"),
            ]);
            tags.extend(rsdps.map(|kind| (kind, rsdp(u8::from(kind == tag::NEW_RSDP)))));
            let info = parse(&information(&tags)).unwrap();
            assert_eq!(info.command_line.as_str(), r#"dyndbg="file x" a=\ b=\x41"#);
            assert_eq!(info.regions.as_slice(), [RAM, HOLE]);
            assert_eq!(info.module(Role::Kernel).unwrap().range(), 0x20_0000..0x20_1234);
            assert_eq!(info.module(Role::Initrd).unwrap().range(), 0x30_0000..0x30_0001);
            assert_eq!(info.rsdp, Some([1; RSDP_BYTES]));
        }
    }

    #[test]
    fn a_region_of_unknown_kind_is_reserved() {
        let tags = [memory_map(24, &[RAM, Region { kind: 20, ..HOLE }])];
        assert_eq!(parse(&information(&tags)).unwrap().regions.as_slice(), [RAM, HOLE]);
    }

    #[test]
    fn an_old_root_pointer_is_filled_up_with_zeros() {
        let tags = [memory_map(24, &[RAM]), (tag::OLD_RSDP, std::vec![7; 20])];
        let rsdp = parse(&information(&tags)).unwrap().rsdp.unwrap();
        assert_eq!(rsdp.split_at(20), (&[7; 20][..], &[0; 16][..]));
    }

    #[test]
    fn what_is_missing_or_cut_off_is_refused() {
        assert!(parse(&[]).is_err());
        assert!(parse(&information(&[])).unwrap_err().contains("memory map"));
        assert!(parse(&information(&[memory_map(8, &[])])).is_err());
        let whole = information(&[memory_map(24, &[RAM, HOLE])]);
        for length in 0..whole.len() - 4 {
            assert!(parse(whole.get(..length).unwrap()).is_err(), "{length}");
        }
    }

    /// What GRUB does to an argument without spaces (grub-core/lib/cmdline.c).
    fn grub_quotes(text: &str) -> String {
        let mut quoted = String::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let mut digits = rest.chars().skip(2);
            let hexadecimal = rest.starts_with("\\x")
                && digits.next().is_some_and(|c| c.is_ascii_hexdigit())
                && digits.next().is_some_and(|c| c.is_ascii_hexdigit());
            let taken = if hexadecimal { 4 } else { first.len_utf8() };
            if !hexadecimal && matches!(first, '\\' | '\'' | '"') {
                quoted.push('\\');
            }
            let (piece, more) = rest.split_at(taken);
            quoted.push_str(piece);
            rest = more;
        }
        quoted
    }

    proptest! {
        #[test]
        fn quoting_is_undone(line in "[ -~]{0,40}") {
            let quoted: String = unquoted(&grub_quotes(&line)).collect();
            prop_assert_eq!(quoted, line);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, tags: Vec<(u32, Vec<u8>)>) {
            let _ = parse(&bytes);
            let tags: Vec<_> = tags.into_iter().map(|(kind, body)| (kind % 18, body)).collect();
            let _ = parse(&information(&tags));
        }
    }
}
