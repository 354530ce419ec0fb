//! The ELF sections of the decompressed kernel. The build strips symbols but keeps these.

use crate::vmlinux::Image;
use alloc::string::String;
use alloc::vec::Vec;
use elf::ElfBytes;
use elf::abi::{SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS};
use elf::endian::LittleEndian;

/// More sections than any kernel has; Debian's have about fifty.
const SECTION_LIMIT: usize = 512;

/// A section that is in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Name, such as `.text`.
    pub name: String,
    /// First byte, counted from `_text`.
    pub offset: u32,
    /// Bytes in memory.
    pub length: u64,
    /// Whether it is flagged as written to.
    pub writable: bool,
    /// Whether it is flagged as code.
    pub executable: bool,
    /// Whether its bytes are in the file; otherwise they start as zeroes.
    pub in_file: bool,
}

impl Section {
    /// One past the last byte, counted from `_text`.
    pub fn end(&self) -> u64 {
        u64::from(self.offset).saturating_add(self.length)
    }
}

/// All sections at kernel addresses; none if the file has no readable section headers (nothing
/// that Ravelin does needs them).
pub fn of(vmlinux: &[u8], image: &Image<'_>) -> Vec<Section> {
    let Ok(elf) = ElfBytes::<LittleEndian>::minimal_parse(vmlinux) else { return Vec::new() };
    let Ok((Some(headers), Some(names))) = elf.section_headers_with_strtab() else {
        return Vec::new();
    };
    let section = |header: elf::section::SectionHeader| {
        let flag = |flag: u32| header.sh_flags & u64::from(flag) != 0;
        let offset = image.offset(header.sh_addr)?;
        (flag(SHF_ALLOC) && header.sh_size > 0).then_some(())?;
        Some(Section {
            name: names.get(usize::try_from(header.sh_name).ok()?).ok()?.into(),
            offset,
            length: header.sh_size,
            writable: flag(SHF_WRITE),
            executable: flag(SHF_EXECINSTR),
            in_file: header.sh_type != SHT_NOBITS,
        })
    };
    headers.iter().take(SECTION_LIMIT).filter_map(section).collect()
}
