//! Permission counters: over all aliases of a frame in the guest's own page tables, how many can
//! read it, write it, execute it.
//!
//! One byte per frame holds three counters of two bits, each of which stops at 3, "three or more".
//! So the counters of 8 frames are one `u64`, and a range of frames is counted a word at a time:
//! no counter ever carries into its neighbour, because a full one is not incremented.

use crate::Rights;
use addr::{FrameRange, Gfn};

/// The low bit of the three counters of a frame.
const LOW: u8 = 0b01_01_01;
/// Frames in a word.
const LANES: usize = 8;

/// The counters of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collective {
    /// Aliases that can read; 3 stands for three or more, here and below.
    pub readable: u8,
    /// Aliases that can write.
    pub writable: u8,
    /// Aliases that can execute.
    pub executable: u8,
}

impl Collective {
    const fn from_byte(byte: u8) -> Self {
        Self { readable: byte & 3, writable: byte >> 2 & 3, executable: byte >> 4 & 3 }
    }

    /// What can be done through any alias.
    pub fn rights(self) -> Rights {
        let granted = |count, right| if count > 0 { right } else { Rights::empty() };
        granted(self.readable, Rights::READ)
            | granted(self.writable, Rights::WRITE)
            | granted(self.executable, Rights::EXECUTE)
    }

    /// Whether the frame can be written and executed, through the same alias or two.
    pub const fn conflicts(self) -> bool {
        self.writable > 0 && self.executable > 0
    }
}

/// Numbers of frames, by what all aliases together allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Some alias can write them.
    pub writable: u64,
    /// Some alias can write them, and some alias, maybe another, can execute them.
    pub conflicting: u64,
}

/// Counters for frames 0 to `storage.len()` of a guest.
pub struct Counters<'a> {
    storage: &'a mut [u8],
}

impl<'a> Counters<'a> {
    /// Takes over `storage`, one byte per frame, and zeroes it.
    pub fn new(storage: &'a mut [u8]) -> Self {
        storage.fill(0);
        Self { storage }
    }

    /// Counts one alias with `rights` for every frame of `range`. Frames past the end of the
    /// storage (devices, say) are left out.
    pub fn add(&mut self, range: FrameRange<addr::GuestPhysical>, rights: Rights) {
        let clamp = |frame: Gfn| {
            usize::try_from(frame.raw()).map_or(self.storage.len(), |n| n.min(self.storage.len()))
        };
        let (start, end) = (clamp(range.start), clamp(range.end));
        let Some(frames) = self.storage.get_mut(start..end) else { return };
        let one = increment_of(rights);
        let (words, rest) = frames.as_chunks_mut::<LANES>();
        for word in words {
            *word = saturating_add(u64::from_ne_bytes(*word), u64::from_ne_bytes([one; LANES]))
                .to_ne_bytes();
        }
        for frame in rest {
            let [sum, ..] = saturating_add(u64::from(*frame), u64::from(one)).to_le_bytes();
            *frame = sum;
        }
    }

    /// The counters of `frame`; `None` outside of the storage.
    pub fn collective(&self, frame: Gfn) -> Option<Collective> {
        let index = usize::try_from(frame.raw()).ok()?;
        self.storage.get(index).map(|byte| Collective::from_byte(*byte))
    }

    /// All frames in order.
    pub fn iter(&self) -> impl Iterator<Item = (Gfn, Collective)> {
        (0..).map(Gfn::new).zip(self.storage.iter().map(|byte| Collective::from_byte(*byte)))
    }

    /// Counts frames by what all aliases together allow, a word at a time.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        let (words, rest) = self.storage.as_chunks::<LANES>();
        let mut last = [0; LANES];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        for word in words.iter().chain([&last]) {
            let word = u64::from_ne_bytes(*word);
            let some = word | word >> 1;
            let one_per_frame = u64::from_ne_bytes([1; LANES]);
            let (writable, executable) = (some >> 2 & one_per_frame, some >> 4 & one_per_frame);
            totals.writable += u64::from(writable.count_ones());
            totals.conflicting += u64::from((writable & executable).count_ones());
        }
        totals
    }

    /// The frames that some alias can write and some alias can execute, in order.
    pub fn conflicts(&self) -> impl Iterator<Item = (Gfn, Collective)> {
        self.iter().filter(|(_, collective)| collective.conflicts())
    }
}

/// `rights` as an increment of the counters of one frame.
fn increment_of(rights: Rights) -> u8 {
    let bit = |right, shift: u32| u8::from(rights.contains(right)) << shift;
    bit(Rights::READ, 0) | bit(Rights::WRITE, 2) | bit(Rights::EXECUTE, 4)
}

/// Adds the increment `ones` (low bits of counters only) to 8 frames at once, except where a
/// counter is full.
const fn saturating_add(counters: u64, ones: u64) -> u64 {
    let low = u64::from_ne_bytes([LOW; LANES]);
    let full = counters & counters >> 1 & low;
    counters + (ones & !full)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    const FRAMES: u64 = 100;

    fn any_rights() -> impl Strategy<Value = Rights> {
        (0u8..8).prop_map(Rights::from_bits_truncate)
    }

    proptest! {
        /// The model: a list of all aliases of each frame.
        #[test]
        fn counts_like_a_list_of_aliases(
            aliases in prop::collection::vec((0..FRAMES + 20, 0..FRAMES, any_rights()), 0..40)
        ) {
            let mut storage = vec![0xff; usize::try_from(FRAMES).unwrap()];
            let mut counters = Counters::new(&mut storage);
            for (start, count, rights) in &aliases {
                counters.add(FrameRange::with_count(Gfn::new(*start), *count), *rights);
            }
            let mut conflicts = Vec::new();
            for frame in (0..FRAMES).map(Gfn::new) {
                let count = |right| {
                    let all = aliases.iter().filter(|(start, count, rights)| {
                        rights.contains(right)
                            && FrameRange::with_count(Gfn::new(*start), *count).contains(frame)
                    });
                    u8::try_from(all.count().min(3)).unwrap()
                };
                let expected = Collective {
                    readable: count(Rights::READ),
                    writable: count(Rights::WRITE),
                    executable: count(Rights::EXECUTE),
                };
                prop_assert_eq!(counters.collective(frame), Some(expected));
                if expected.rights().contains(Rights::WRITE | Rights::EXECUTE) {
                    conflicts.push((frame, expected));
                }
            }
            let writable = counters.iter().filter(|(_, c)| c.writable > 0).count() as u64;
            let totals = Totals { writable, conflicting: conflicts.len() as u64 };
            prop_assert_eq!(counters.totals(), totals);
            prop_assert_eq!(counters.conflicts().collect::<Vec<_>>(), conflicts);
            prop_assert_eq!(counters.collective(Gfn::new(FRAMES)), None);
        }
    }

    #[test]
    fn huge_and_backward_ranges_are_clamped() {
        let mut storage = [0; 9];
        let mut counters = Counters::new(&mut storage);
        counters.add(FrameRange::new(Gfn::new(8), Gfn::new(u64::MAX)), Rights::WRITE);
        counters.add(FrameRange::new(Gfn::new(7), Gfn::new(3)), Rights::WRITE);
        counters.add(FrameRange::new(Gfn::new(1 << 60), Gfn::new(u64::MAX)), Rights::WRITE);
        assert_eq!(counters.iter().map(|(_, c)| c.writable).sum::<u8>(), 1);
        assert_eq!(counters.collective(Gfn::new(8)).unwrap().rights(), Rights::WRITE);
    }
}
