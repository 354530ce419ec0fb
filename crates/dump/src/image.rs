//! The kernel's image in memory: where its pages lie, and the symbols that it carries.

use crate::{Dump, Source};
use addr::{Gpa, Gva};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use linux_image::{ImageError, Symbols};
use paging::guest::{GuestLeaf, walk};

/// Where the kernel maps its own image (`__START_KERNEL_map`).
pub const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// The addresses that an image can have; modules begin behind them (Documentation/arch/x86/x86_64/mm).
pub const IMAGE: Range<u64> = KERNEL_MAP..0xffff_ffff_c000_0000;
/// Most pieces of an image: it has half a dozen, between which unused pages were given back.
const MOST_RUNS: usize = 4096;
/// Most bytes of an image that are searched for symbols; Debian's is 50 MiB long.
const MOST_BYTES: u64 = 256 << 20;
/// Longest text that is read.
const MOST_TEXT: usize = 512;

/// Consecutive bytes of the image whose frames are consecutive too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    gva: u64,
    gpa: u64,
    bytes: u64,
}

/// The mapped parts of an image, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelImage {
    runs: Vec<Run>,
}

impl KernelImage {
    /// Adds a leaf, if it maps part of an image; they come in order.
    pub(crate) fn add(&mut self, leaf: &GuestLeaf) {
        let (gva, gpa, bytes) = (leaf.gva.raw(), leaf.gpa.raw(), leaf.frames().count() << 12);
        if !IMAGE.contains(&gva) {
            return;
        }
        let room = self.runs.len() < MOST_RUNS;
        match self.runs.last_mut() {
            Some(last) if last.gva + last.bytes == gva && last.gpa + last.bytes == gpa => {
                last.bytes += bytes;
            }
            _ if room => self.runs.push(Run { gva, gpa, bytes }),
            _ => {}
        }
    }

    /// Number of mapped bytes.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.bytes).sum()
    }

    /// First mapped address, where Linux has `_text`.
    pub fn start(&self) -> Option<Gva> {
        self.runs.first().map(|run| Gva::new(run.gva))
    }

    /// The address in the image of a byte of physical memory.
    pub fn address_of(&self, gpa: Gpa) -> Option<Gva> {
        self.runs.iter().find_map(|run| {
            let inside = gpa.raw().checked_sub(run.gpa)?;
            (inside < run.bytes).then(|| Gva::new(run.gva + inside))
        })
    }
}

impl<S: Source> Dump<S> {
    /// Decodes the symbols that the kernel carries for itself.
    ///
    /// # Errors
    /// It has none, or the dump does not hold all of the image.
    pub fn symbols(&self, image: &KernelImage) -> Result<Symbols, ImageError> {
        let mut segments: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut room = MOST_BYTES;
        for run in &image.runs {
            let readable = self.memory.offset_of(Gpa::new(run.gpa), run.bytes).is_some();
            if run.bytes > room || !readable {
                continue;
            }
            room -= run.bytes;
            let mut bytes = vec![0; addr::length(run.bytes)];
            if self.read(Gpa::new(run.gpa), &mut bytes).is_some() {
                segments.push((run.gva, bytes));
            }
        }
        let segments: Vec<(u64, &[u8])> =
            segments.iter().map(|(address, bytes)| (*address, bytes.as_slice())).collect();
        linux_image::symbols_in_memory(&segments)
    }

    /// An 8-byte variable of the kernel.
    pub fn variable(&self, root: &crate::root::Root, at: Gva) -> Option<u64> {
        let found = walk(root.table, root.levels, at, |entry| self.read_u64(entry)).ok()?;
        self.read_u64(found.gpa)
    }

    /// The first line of a text of the kernel.
    pub fn text(&self, root: &crate::root::Root, at: Gva) -> Option<String> {
        let mut bytes = [0; MOST_TEXT];
        let (first, second) =
            bytes.split_at_mut_checked((addr::PAGE_BYTES - at.offset()).min(MOST_TEXT))?;
        let behind = at.plus(first.len() as u64);
        for (at, part) in [(at, first), (behind, second)] {
            let found = walk(root.table, root.levels, at, |entry| self.read_u64(entry)).ok()?;
            self.read(found.gpa, part)?;
        }
        let line = bytes.split(|byte| matches!(byte, 0 | b'\n')).next()?;
        core::str::from_utf8(line).ok().map(String::from)
    }
}
