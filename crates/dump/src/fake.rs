//! Small machines for tests: page tables, memory, and the dump of it all.

use addr::PAGE_SIZE;
use alloc::vec;
use alloc::vec::Vec;
use paging::Level;

/// A page-table entry's flags.
pub const PRESENT: u64 = 1;
/// Writable.
pub const WRITE: u64 = 2;
/// Open to processes.
pub const USER: u64 = 4;
/// Not executable.
pub const NO_EXECUTE: u64 = 1 << 63;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PAGE: usize = 4096;
/// Where the fake kernel has its image.
pub const IMAGE: u64 = 0xffff_ffff_8100_0000;
/// Where it has its direct map, with four levels.
pub const DIRECT: u64 = 0xffff_8880_0000_0000;
/// Where modules go.
pub const MODULES: u64 = 0xffff_ffff_c000_0000;

/// A machine with memory from 0 on.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its memory.
    pub memory: Vec<u8>,
    /// Levels of its page tables.
    pub levels: u8,
    /// CR3 of its CPU.
    pub cr3: u64,
    /// Next frame that becomes a page table.
    next: u64,
}

impl Machine {
    /// A machine with so many frames, whose root table is at `ROOT` and whose other tables follow.
    pub fn new(frames: usize, levels: u8) -> Self {
        Self {
            memory: vec![0; frames * PAGE],
            levels,
            cr3: Self::ROOT,
            next: Self::ROOT + PAGE_SIZE,
        }
    }

    /// Where the root table is.
    pub const ROOT: u64 = 0x1000;

    /// The entry at a physical address; 0 behind the end of memory.
    pub fn entry(&self, at: u64) -> u64 {
        let at = addr::length(at);
        let bytes = self.memory.get(at..at + 8).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Writes the entry at a physical address.
    pub fn set(&mut self, at: u64, entry: u64) {
        let at = addr::length(at);
        if let Some(bytes) = self.memory.get_mut(at..at + 8) {
            bytes.copy_from_slice(&entry.to_le_bytes());
        }
    }

    /// Where the entry of a leaf for `gva` is stored; tables on the way are made.
    pub fn place(&mut self, root: u64, gva: u64, leaf: Level) -> u64 {
        let mut table = root;
        let mut level = self.levels;
        loop {
            let at = table + (gva >> (12 + 9 * (u32::from(level) - 1)) & 511) * 8;
            if u64::from(level) == leaf as u64 {
                return at;
            }
            if self.entry(at) & PRESENT == 0 {
                self.set(at, self.next | PRESENT | WRITE | USER);
                self.next += PAGE_SIZE;
            }
            table = self.entry(at) & ADDRESS;
            level -= 1;
        }
    }

    /// Maps a leaf, in place of the one that was there.
    pub fn map(&mut self, root: u64, gva: u64, gpa: u64, leaf: Level, flags: u64) {
        let at = self.place(root, gva, leaf);
        let large = if leaf == Level::Page4K { 0 } else { LARGE };
        self.set(at, gpa | PRESENT | large | flags);
    }

    /// A root table with the kernel half of the machine's own, for a process.
    pub fn process(&mut self) -> u64 {
        let root = self.next;
        self.next += PAGE_SIZE;
        for offset in (PAGE_SIZE / 2..PAGE_SIZE).step_by(8) {
            let entry = self.entry(Self::ROOT + offset);
            self.set(root + offset, entry);
        }
        root
    }

    /// Its dump: memory in pieces that end at these addresses, with QEMU's note of one CPU.
    pub fn dump(&self, ends: &[u64]) -> Vec<u8> {
        let mut state = vec![0; 440];
        let mut register = |number: usize, value: u64| {
            if let Some(bytes) = state.get_mut(392 + number * 8..400 + number * 8) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        };
        register(0, 1 << 31 | 1);
        register(3, self.cr3);
        register(4, if self.levels == 5 { 1 << 12 | 1 << 5 } else { 1 << 5 });
        elf(&[note(b"QEMU\0\0\0\0", 5, &state)], &self.memory, ends)
    }

    /// Its dump with the kernel's own note in place of QEMU's.
    pub fn kdump(&self, text: &str) -> Vec<u8> {
        elf(&[note(b"VMCOREINFO\0\0", 11, text.as_bytes())], &self.memory, &[])
    }
}

fn note(name: &[u8], name_length: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or_default();
    let numbers = [name_length, length, 0].map(u32::to_le_bytes);
    let mut bytes = numbers.concat();
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A core file of these notes and this memory.
fn elf(notes: &[Vec<u8>], memory: &[u8], ends: &[u64]) -> Vec<u8> {
    let notes = notes.concat();
    let mut ends: Vec<u64> = ends.to_vec();
    ends.push(memory.len() as u64);
    let count = u16::try_from(ends.len() + 1).unwrap_or_default();
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([4_u16, 62].map(u16::to_le_bytes).concat());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend([0_u64, 64, 0].map(u64::to_le_bytes).concat());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend([64_u16, 56, count, 0, 0, 0].map(u16::to_le_bytes).concat());
    let notes_at = 64 + 56 * u64::from(count);
    let memory_at = notes_at + notes.len() as u64;
    let mut header = |kind: u32, offset: u64, physical: u64, length: u64| {
        bytes.extend([kind, 7].map(u32::to_le_bytes).concat());
        let words = [offset, 0, physical, length, length, 0];
        bytes.extend(words.map(u64::to_le_bytes).concat());
    };
    header(4, notes_at, 0, notes.len() as u64);
    let mut start = 0;
    for end in ends {
        header(1, memory_at + start, start, end - start);
        start = end;
    }
    bytes.extend(notes);
    bytes.extend_from_slice(memory);
    bytes
}
