//! kprobes: which breakpoints may stand in kernel text away from patch sites.
//!
//! Linux puts a kprobe by one write of `int3` over the first byte of an instruction, and removes it
//! by one write of that byte (`arch_arm_kprobe`, `arch_disarm_kprobe`, arch/x86/kernel/kprobes/core.c).
//! What always holds under [`Probes::judge`]: text away from patch sites is what it was at the lock,
//! but for an `int3` at each recorded place; and a recorded place is the first byte of an
//! instruction, outside of the kernel's blacklist.
//!
//! Where instructions begin is found as the kernel finds it (`can_probe`): decoded one by one from the
//! entry of the function. What patching could change on the way is not looked at: a patch site counts
//! as one instruction of its length, and a probed instruction starts with its original byte.
//!
//! A kprobe at the entry of a traced function is the tracer's matter. An *optimised* one, a jump over
//! several instructions, is no legal step; the kernel is told not to make any
//! ([`abi::policy::Policy::kernel_arguments`]).

use super::{INT3, Legal, Memory, Refused};
use abi::manifest::{Manifest, TRACED_LENGTH};
use abi::policy::Patching;
use arrayvec::ArrayVec;
use x86_decode::{MAX_LENGTH, length};

/// Most probes at a time.
const MOST: usize = 1024;
/// Longest function that is decoded, in bytes.
const LONGEST: u64 = 64 << 10;
/// Bytes of text that are read at once.
const PIECE: usize = 128;

#[derive(Clone, Copy, Debug)]
struct Probe {
    /// From `_text`.
    offset: u64,
    original: u8,
}

/// The probes that are in text now, by offset.
#[derive(Debug)]
pub struct Probes(ArrayVec<Probe, MOST>);

impl Default for Probes {
    fn default() -> Self {
        Self::new()
    }
}

impl Probes {
    /// None.
    pub const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    fn find(&self, offset: u64) -> Result<usize, usize> {
        self.0.binary_search_by_key(&offset, |probe| probe.offset)
    }

    /// The byte that a probe at `offset` displaced.
    fn original(&self, offset: u64) -> Option<u8> {
        self.find(offset).ok().and_then(|index| self.0.get(index)).map(|probe| probe.original)
    }

    /// Judges a write that touches no patch site, and records what is legal. The caller performs it,
    /// with no other write to text between question and deed.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed.
    pub fn judge(
        &mut self,
        manifest: &Manifest<'_>,
        allowed: Patching,
        memory: &dyn Memory,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Legal, Refused> {
        let &[byte] = bytes else { return Err(Refused::NoSite) };
        let place = match self.find(offset) {
            Ok(index) => {
                let original = self.original(offset);
                return match byte {
                    INT3 => Ok(Legal::Unchanged),
                    byte if Some(byte) == original => {
                        self.0.remove(index);
                        Ok(Legal::ProbeRemoved)
                    }
                    _ => Err(Refused::IllegalBytes),
                };
            }
            Err(place) => place,
        };
        if byte != INT3 || !manifest.may_probe(offset) {
            return Err(Refused::NoSite);
        }
        if !allowed.kprobes {
            return Err(Refused::Policy);
        }
        let mut original = [0];
        memory.text(offset, &mut original).ok_or(Refused::Unreadable)?;
        if !self.starts_instruction(manifest, memory, offset).unwrap_or(false) {
            return Err(Refused::InsideInstruction);
        }
        let [original] = original;
        self.0.try_insert(place, Probe { offset, original }).map_err(|_| Refused::TooMany)?;
        Ok(Legal::Probe)
    }

    /// Whether an instruction starts at `offset`; `None` if that cannot be told.
    fn starts_instruction(
        &self,
        manifest: &Manifest<'_>,
        memory: &dyn Memory,
        offset: u64,
    ) -> Option<bool> {
        let mut at = manifest.function_before(offset)?;
        if offset - at > LONGEST {
            return None;
        }
        let mut text = Text {
            memory,
            end: manifest.header().text.end.into(),
            start: at,
            bytes: [0; PIECE],
            filled: 0,
        };
        while at < offset {
            at += if let Some(site) = manifest.site_at(at) {
                site.end() - at
            } else if let Some(traced) = manifest.traced_at(at) {
                u64::from(traced) + u64::from(TRACED_LENGTH) - at
            } else {
                let mut code = text.at(at)?;
                if let (Some(original), Some(first)) = (self.original(at), code.first_mut()) {
                    *first = original;
                }
                length(&code)?.into()
            };
        }
        Some(at == offset)
    }
}

/// Locked text, read piece by piece.
struct Text<'a> {
    memory: &'a dyn Memory,
    end: u64,
    start: u64,
    bytes: [u8; PIECE],
    filled: usize,
}

impl Text<'_> {
    /// What stands at `offset`, up to the longest instruction or the end of text.
    fn at(&mut self, offset: u64) -> Option<ArrayVec<u8, MAX_LENGTH>> {
        let wanted = usize::try_from(self.end.checked_sub(offset)?).ok()?.min(MAX_LENGTH);
        let inside = |text: &Self| usize::try_from(offset.checked_sub(text.start)?).ok();
        let there = inside(self).is_some_and(|at| at + wanted <= self.filled);
        if !there {
            let length = usize::try_from(self.end - offset).ok()?.min(PIECE);
            self.memory.text(offset, self.bytes.get_mut(..length)?)?;
            (self.start, self.filled) = (offset, length);
        }
        let at = inside(self)?;
        Some(self.bytes.get(at..at + wanted)?.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests;
