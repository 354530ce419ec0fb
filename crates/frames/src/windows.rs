//! Which slot of a CPU's window area an opened window gets.
//!
//! A window is a short mapping of one frame that the hypervisor otherwise does not map. Its slot
//! is drawn at random, so that no address tells, or predicts, what is mapped there. A slot is
//! given to one window at a time.

/// Slots in a window area: the pages that one page table maps.
pub const SLOTS: u16 = 512;

/// Where the draws of a slot number are in a random number.
const DRAWS: [u32; 7] = [0, 9, 18, 27, 36, 45, 54];
const BITS: u16 = 64;
const WORDS: usize = (SLOTS / BITS) as usize;

/// A slot was closed that is not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("window slot {0} is not open")]
pub struct NotOpen(pub u16);

/// The slots of one CPU.
#[derive(Debug, Default)]
pub struct WindowSlots {
    /// A bit is set while its slot is open.
    open: [u64; WORDS],
}

impl WindowSlots {
    /// All slots closed.
    pub const fn new() -> Self {
        Self { open: [0; WORDS] }
    }

    /// Number of open slots, 0 to [`SLOTS`].
    pub fn count(&self) -> u32 {
        self.open.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether a slot is open.
    pub fn is_open(&self, slot: u16) -> bool {
        slot < SLOTS && self.open[usize::from(slot / BITS)] >> (slot % BITS) & 1 != 0
    }

    /// Opens one of the closed slots, below [`SLOTS`]: each equally likely if all values of
    /// `random` are, as long as few are open. `None` if all are open.
    pub fn open(&mut self, random: u64) -> Option<u16> {
        // Nearly always the first draw is a closed one.
        let drawn = DRAWS.map(|shift| (random >> shift & u64::from(SLOTS - 1)).to_le_bytes());
        let drawn = drawn.map(|[low, high, ..]| u16::from_le_bytes([low, high]));
        let slot = drawn.into_iter().chain(0..SLOTS).find(|slot| !self.is_open(*slot))?;
        self.open[usize::from(slot / BITS)] |= 1 << (slot % BITS);
        Some(slot)
    }

    /// Closes an open slot.
    ///
    /// # Errors
    /// `NotOpen`, also for numbers from [`SLOTS`] on.
    pub fn close(&mut self, slot: u16) -> Result<(), NotOpen> {
        if !self.is_open(slot) {
            return Err(NotOpen(slot));
        }
        self.open[usize::from(slot / BITS)] &= !(1 << (slot % BITS));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec;
    use std::vec::Vec;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// `Some(random)` opens, `None` closes `slot`.
        #[test]
        fn slots_match_a_plain_set(
            ops in prop::collection::vec((prop::option::weighted(0.8, any::<u64>()), 0_u16..520), 0..900),
        ) {
            let mut slots = WindowSlots::new();
            let mut open = BTreeSet::new();
            for (random, slot) in ops {
                match random {
                    Some(random) => {
                        let drawn = (0..7).map(|draw| (random >> (9 * draw)) % 512);
                        let slots_in_turn = drawn.map(|slot| u16::try_from(slot).unwrap()).chain(0..512);
                        let expected = { slots_in_turn }.find(|slot| !open.contains(slot));
                        prop_assert_eq!(slots.open(random), expected);
                        open.extend(expected);
                    }
                    None => {
                        let expected = if open.remove(&slot) { Ok(()) } else { Err(NotOpen(slot)) };
                        prop_assert_eq!(slots.close(slot), expected);
                    }
                }
                prop_assert_eq!(slots.count() as usize, open.len());
                prop_assert_eq!(slots.is_open(slot), open.contains(&slot));
            }
        }
    }

    #[test]
    fn closed_slots_are_equally_likely() {
        let mut slots = WindowSlots::new();
        // More than the hypervisor ever opens at a time.
        for random in 0..8 {
            slots.open(random * 7);
        }
        let mut hits = vec![0; usize::from(SLOTS)];
        // SplitMix64, a generator without visible structure.
        let mut state = 0_u64;
        for _ in 0..504 * 1000 {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut random = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            random = (random ^ random >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            let slot = slots.open(random ^ random >> 31).unwrap();
            slots.close(slot).unwrap();
            hits[usize::from(slot)] += 1;
        }
        // Each slot expects 1000 hits with a deviation of 32.
        let drawn: Vec<i32> = hits.into_iter().filter(|hits| *hits > 0).collect();
        assert_eq!(drawn.len(), 504);
        assert!(drawn.iter().all(|hits| (820..1180).contains(hits)), "{drawn:?}");
    }
}
