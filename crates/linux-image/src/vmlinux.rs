//! The decompressed kernel: an x86-64 ELF file whose loadable segments are bytes at link-time
//! addresses.

use crate::ImageError;
use alloc::format;
use alloc::vec::Vec;
use elf::ElfBytes;
use elf::abi::{EM_X86_64, PT_LOAD};
use elf::endian::LittleEndian;
use elf::file::Class;

/// Where the kernel's own mapping begins (`__START_KERNEL_map`). Segments below it, such as the
/// per-CPU template linked at 0, are not part of the image.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// More segments than any kernel has; Debian's has three.
const SEGMENT_LIMIT: usize = 16;

/// Bytes that the file gives for consecutive addresses.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Link-time address of the first byte.
    pub address: u64,
    /// Contents; what the kernel zeroes itself is left out.
    pub bytes: &'a [u8],
}

/// A kernel at its link-time addresses.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    segments: Vec<Segment<'a>>,
    base: u64,
}

impl<'a> Image<'a> {
    /// Takes the kernel's segments out of a vmlinux.
    ///
    /// # Errors
    /// `NotVmlinux`.
    pub fn parse(vmlinux: &'a [u8]) -> Result<Self, ImageError> {
        let bad = |reason: &str| ImageError::NotVmlinux(reason.into());
        let elf = ElfBytes::<LittleEndian>::minimal_parse(vmlinux)
            .map_err(|error| ImageError::NotVmlinux(format!("{error}")))?;
        if elf.ehdr.class != Class::ELF64 || elf.ehdr.e_machine != EM_X86_64 {
            return Err(bad("another machine's ELF file"));
        }
        let headers = elf.segments().ok_or_else(|| bad("no program headers"))?;
        let mut segments = Vec::new();
        for header in headers.iter() {
            if header.p_type == PT_LOAD && header.p_vaddr >= KERNEL_MAP {
                let bytes = elf
                    .segment_data(&header)
                    .map_err(|error| ImageError::NotVmlinux(format!("{error}")))?;
                segments.push(Segment { address: header.p_vaddr, bytes });
            }
        }
        if segments.len() > SEGMENT_LIMIT {
            return Err(bad("too many segments"));
        }
        let base = segments.iter().map(|segment| segment.address).min();
        let base = base.ok_or_else(|| bad("no segment at a kernel address"))?;
        Ok(Self { segments, base })
    }

    /// The image of a kernel that runs, at the addresses where it does.
    ///
    /// # Errors
    /// `NotVmlinux` without any part.
    pub fn in_memory(parts: &[(u64, &'a [u8])]) -> Result<Self, ImageError> {
        let segment = |&(address, bytes): &(u64, &'a [u8])| Segment { address, bytes };
        let segments: Vec<Segment<'a>> = parts.iter().map(segment).collect();
        let base = segments.iter().map(|segment| segment.address).min();
        let base = base.ok_or_else(|| ImageError::NotVmlinux("no part of it is there".into()))?;
        Ok(Self { segments, base })
    }

    /// Lowest link-time address.
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// All segments, as the file orders them.
    pub fn segments(&self) -> &[Segment<'a>] {
        &self.segments
    }

    /// `length` bytes at a link-time address, if one segment holds them all.
    pub fn bytes(&self, address: u64, length: usize) -> Option<&'a [u8]> {
        self.segments.iter().find_map(|segment| {
            let start = usize::try_from(address.checked_sub(segment.address)?).ok()?;
            segment.bytes.get(start..)?.get(..length)
        })
    }

    /// Bytes from `base` to `address`; `None` if that is not a `u32`.
    pub fn offset(&self, address: u64) -> Option<u32> {
        u32::try_from(address.checked_sub(self.base)?).ok()
    }
}
