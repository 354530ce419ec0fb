//! Memory dumps of x86-64 Linux machines, and what the page tables in them allow.
//!
//! The way: `headers` and `notes` read the ELF file, [`memory`] says where each frame lies in it,
//! [`root`] finds the kernel's page tables, [`image`] the kernel and its symbols, [`survey`] counts
//! the rights of every frame over all its mappings and lists what should not be.
//!
//! A dump comes from a machine that may have been taken over, and may be damaged. So every read is
//! checked, every walk has a budget that follows from the size of the file, and every list has a
//! limit; what a limit cuts off is counted.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod aliases;
mod counts;
mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod formats;
mod headers;
pub mod image;
pub mod memory;
pub mod names;
mod notes;
pub mod root;
pub mod survey;
#[cfg(test)]
mod tests;
mod users;

pub use error::DumpError;
pub use notes::{Cpu, VmcoreInfo};

use alloc::vec;
use memory::MemoryMap;
use paging::ENTRIES;

/// A file that is read at positions.
pub trait Source {
    /// Bytes in the file.
    fn length(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset` on; `None` if that is not possible.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Option<()>;
}

impl Source for &[u8] {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        let start = usize::try_from(offset).ok()?;
        buffer.copy_from_slice(self.get(start..)?.get(..buffer.len())?);
        Some(())
    }
}

/// A dump whose headers were read.
pub struct Dump<S> {
    source: S,
    /// Where each frame lies.
    pub memory: MemoryMap,
    /// CPUs of which QEMU noted the registers.
    pub cpus: vec::Vec<Cpu>,
    /// What the kernel itself notes for those who read its dumps.
    pub vmcoreinfo: Option<VmcoreInfo>,
}

impl<S: Source> Dump<S> {
    /// Reads the headers and notes of an ELF dump.
    ///
    /// # Errors
    /// The file is no ELF dump of an x86-64 machine, or it is damaged.
    pub fn open(source: S) -> Result<Self, DumpError> {
        let headers = headers::read(&source)?;
        let memory = MemoryMap::new(&headers.loads, source.length())?;
        let notes = notes::read(&source, &headers.notes);
        Ok(Self { source, memory, cpus: notes.cpus, vmcoreinfo: notes.vmcoreinfo })
    }

    /// Fills `buffer` from a guest-physical address on, if the dump has it all in one piece.
    pub fn read(&self, at: addr::Gpa, buffer: &mut [u8]) -> Option<()> {
        let offset = self.memory.offset_of(at, buffer.len() as u64)?;
        self.source.read_at(offset, buffer)
    }

    /// One 8-byte number.
    pub fn read_u64(&self, at: addr::Gpa) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }

    /// One page table.
    pub fn read_table(&self, at: addr::Gpa, entries: &mut [u64; ENTRIES]) -> Option<()> {
        let mut bytes = [0; addr::PAGE_BYTES];
        self.read(at, &mut bytes)?;
        for (entry, bytes) in entries.iter_mut().zip(bytes.as_chunks().0) {
            *entry = u64::from_le_bytes(*bytes);
        }
        Some(())
    }

    /// Page tables that a walk may read: each of this machine twice, and some for small dumps.
    fn table_budget(&self) -> u64 {
        const MOST: u64 = 1 << 22;
        (self.memory.frames() * 2 + 1024).min(MOST)
    }
}
