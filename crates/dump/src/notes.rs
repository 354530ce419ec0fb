//! The notes of a dump: the CPUs' registers as QEMU puts them down (`target/i386/arch_dump.c`,
//! `QEMUCPUState`), and the kernel's own VMCOREINFO (Documentation/admin-guide/kdump).

use crate::Source;
use addr::Gpa;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::note::{Note, NoteIterator};

/// Most bytes of notes that are read; a CPU takes about 800.
const MOST_BYTES: u64 = 16 << 20;
/// Most CPUs.
const MOST_CPUS: usize = 8192;
/// Where the control registers 0 to 4 begin in QEMU's note: version and size, 18 registers of 8
/// bytes, 10 segments of 24.
const CONTROL_REGISTERS: usize = 8 + 18 * 8 + 10 * 24;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;

/// A CPU with paging on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its number in the order of the notes.
    pub number: usize,
    /// Its CR3.
    pub cr3: u64,
    /// Levels of its page tables, 4 or 5.
    pub levels: u8,
}

/// What the kernel says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmcoreInfo {
    /// `OSRELEASE`, as `uname -r` prints it.
    pub release: Option<String>,
    /// `SYMBOL(swapper_pg_dir)`, at run time.
    pub swapper_pg_dir: Option<u64>,
    /// `NUMBER(phys_base)`: what the image's physical addresses exceed their place by.
    pub phys_base: u64,
    /// Levels of the page tables, 4 or 5.
    pub levels: u8,
}

impl VmcoreInfo {
    /// Where the kernel's own root table lies.
    pub fn root(&self) -> Option<Gpa> {
        let offset = self.swapper_pg_dir?.checked_sub(crate::image::KERNEL_MAP)?;
        Some(Gpa::new(offset.wrapping_add(self.phys_base)))
    }

    fn parse(text: &str) -> Self {
        let value =
            |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let signed = |text: &str| text.parse::<i64>().ok().map(i64::cast_unsigned);
        let number = |key| value(key).and_then(|text| text.parse().ok().or_else(|| signed(text)));
        let swapper = value("SYMBOL(swapper_pg_dir)");
        Self {
            release: value("OSRELEASE").map(String::from),
            swapper_pg_dir: swapper.and_then(|text| u64::from_str_radix(text, 16).ok()),
            phys_base: number("NUMBER(phys_base)").unwrap_or_default(),
            levels: if number("NUMBER(pgtable_l5_enabled)") == Some(1) { 5 } else { 4 },
        }
    }
}

/// All notes that are of use.
#[derive(Debug, Default)]
pub struct Notes {
    /// CPUs with paging on.
    pub cpus: Vec<Cpu>,
    /// The kernel's.
    pub vmcoreinfo: Option<VmcoreInfo>,
}

/// Reads the notes at these positions; one that is malformed ends its segment.
pub fn read(source: &impl Source, places: &[(u64, u64)]) -> Notes {
    let mut notes = Notes::default();
    let mut number = 0;
    for &(offset, length) in places {
        let length = length.min(MOST_BYTES).min(source.length());
        let mut bytes = vec![0; addr::length(length)];
        if source.read_at(offset, &mut bytes).is_none() {
            continue;
        }
        for note in NoteIterator::new(LittleEndian, Class::ELF64, 4, &bytes) {
            let Note::Unknown(note) = note else { continue };
            match note.name_str() {
                Ok("QEMU") if notes.cpus.len() < MOST_CPUS => {
                    notes.cpus.extend(cpu(note.desc, number));
                    number += 1;
                }
                Ok("VMCOREINFO") => {
                    notes.vmcoreinfo = core::str::from_utf8(note.desc)
                        .ok()
                        .map(|text| VmcoreInfo::parse(text.trim_end_matches('\0')));
                }
                _ => {}
            }
        }
    }
    notes
}

fn cpu(state: &[u8], number: usize) -> Option<Cpu> {
    let register = |number: usize| {
        let at = CONTROL_REGISTERS + number * 8;
        state.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    };
    let (cr0, cr3, cr4) = (register(0)?, register(3)?, register(4)?);
    let levels = if cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    (cr0 & CR0_PG != 0 && cr4 & CR4_PAE != 0).then_some(Cpu { number, cr3, levels })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_where_its_root_is() {
        let text = "OSRELEASE=6.1.0-56\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff96e10000\n\
                    NUMBER(phys_base)=-352321536\nNUMBER(pgtable_l5_enabled)=1\n";
        let info = VmcoreInfo::parse(text);
        assert_eq!(info.release.as_deref(), Some("6.1.0-56"));
        assert_eq!(info.root(), Some(Gpa::new(0x16e1_0000 - 352_321_536)));
        assert_eq!(info.levels, 5);
        assert_eq!(VmcoreInfo::parse("nothing").root(), None);
    }
}
