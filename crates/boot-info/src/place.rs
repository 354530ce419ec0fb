//! The search for free RAM: where all of a range is RAM, and nothing that was put there already.
//!
//! Maps may be unsorted, and their entries may touch or overlap; where RAM and something else
//! overlap, it is not RAM.

use crate::Region;
use core::ops::Range;

/// Memory at boot.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    /// The memory map.
    pub regions: &'a [Region],
    /// What is taken besides: ranges of addresses, in any order.
    pub taken: &'a [Range<u64>],
}

impl Memory<'_> {
    /// Whether every byte of `range` is RAM, taken or not.
    pub fn is_ram(&self, range: &Range<u64>) -> bool {
        let mut rest = range.clone();
        // Each round goes past the end of at least one region.
        for _ in self.regions {
            let region = self.regions.iter().filter(|r| r.is_ram());
            let region = region.filter(|r| r.start <= rest.start && rest.start < r.end());
            let Some(end) = region.map(Region::end).max() else { break };
            rest.start = end;
            if rest.is_empty() {
                break;
            }
        }
        rest.is_empty() && !self.others().any(|other| overlap(&other, range))
    }

    /// Start of the lowest free `length` bytes from `from` on, at a multiple of `align` (a power
    /// of two).
    pub fn lowest(&self, from: u64, length: u64, align: u64) -> Option<u64> {
        let ends = self.regions.iter().map(Region::end);
        let starts = self.regions.iter().map(|region| region.start);
        let ends = ends.chain(starts).chain(self.taken.iter().map(|taken| taken.end));
        let candidates = ends.chain([from]).filter(|start| *start >= from);
        candidates
            .filter_map(|start| start.checked_next_multiple_of(align))
            .filter(|start| self.is_free(*start, length))
            .min()
    }

    /// Start of the highest free `length` bytes below `limit`, at a multiple of `align` (a power
    /// of two).
    pub fn highest(&self, limit: u64, length: u64, align: u64) -> Option<u64> {
        let starts = self.regions.iter().map(|region| region.start);
        let ends = self.regions.iter().map(Region::end);
        let starts = starts.chain(ends).chain(self.taken.iter().map(|taken| taken.start));
        let candidates = starts.chain([limit]).filter(|end| *end <= limit);
        candidates
            .filter_map(|end| end.checked_sub(length).map(|start| start & !(align - 1)))
            .filter(|start| self.is_free(*start, length))
            .max()
    }

    fn is_free(&self, start: u64, length: u64) -> bool {
        let Some(end) = start.checked_add(length) else { return false };
        let range = start..end;
        self.is_ram(&range) && !self.taken.iter().any(|taken| overlap(taken, &range))
    }

    fn others(&self) -> impl Iterator<Item = Range<u64>> {
        let others = self.regions.iter().filter(|region| !region.is_ram());
        others.map(|region| region.start..region.end())
    }
}

/// Whether two ranges have a byte in common.
pub fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_module_at_the_top_of_ram_is_avoided() {
        // As GRUB leaves it on a UEFI machine: RAM in pieces, modules at its top.
        let ram = |start, end| Region { start, length: end - start, kind: 1 };
        let regions = [
            ram(0, 0xa_0000),
            ram(MIB, 8 * MIB),
            Region { start: 8 * MIB, length: MIB, kind: 4 },
            ram(9 * MIB, 500 * MIB),
            ram(500 * MIB, 501 * MIB + 4096),
            ram(4096 * MIB, 6144 * MIB),
        ];
        let modules = [490 * MIB..500 * MIB, 16 * MIB..17 * MIB];
        let memory = Memory { regions: &regions, taken: &modules };
        assert_eq!(memory.highest(4096 * MIB, 20 * MIB, 2 * MIB), Some(470 * MIB));
        assert_eq!(memory.highest(4096 * MIB, 500 * MIB, 2 * MIB), None);
        assert_eq!(memory.lowest(16 * MIB, 20 * MIB, 2 * MIB), Some(18 * MIB));
        assert_eq!(memory.lowest(16 * MIB, 480 * MIB, 2 * MIB), Some(4096 * MIB));
        assert!(memory.is_ram(&(499 * MIB..501 * MIB)));
        assert!(!memory.is_ram(&(7 * MIB..10 * MIB)));
    }

    /// Regions and taken ranges in a memory of 64 bytes.
    fn memories() -> impl Strategy<Value = (Vec<Region>, Vec<Range<u64>>)> {
        let region = (0_u64..64, 0_u64..40, 1_u32..3);
        let region = region.prop_map(|(start, length, kind)| Region { start, length, kind });
        let taken = (0_u64..64, 0_u64..10).prop_map(|(start, length)| start..start + length);
        (proptest::collection::vec(region, 0..6), proptest::collection::vec(taken, 0..4))
    }

    proptest! {
        #[test]
        fn the_search_finds_what_trying_all_finds(
            (regions, taken) in memories(), length in 1_u64..20, align in 0_u32..4, bound in 0_u64..64,
        ) {
            let align = 1 << align;
            let has = |ram: bool, byte: u64| {
                regions.iter().any(|r| r.is_ram() == ram && (r.start..r.end()).contains(&byte))
            };
            let ram = |byte: u64| has(true, byte) && !has(false, byte);
            let free = |start: u64| {
                (start..start + length).all(|byte| ram(byte) && !taken.iter().any(|t| t.contains(&byte)))
            };
            let memory = Memory { regions: &regions, taken: &taken };
            let starts = || (0..200).filter(|start| start % align == 0);
            prop_assert_eq!(
                memory.lowest(bound, length, align),
                starts().find(|start| *start >= bound && free(*start))
            );
            prop_assert_eq!(
                memory.highest(bound, length, align),
                starts().filter(|start| start + length <= bound && free(*start)).max()
            );
            let range = bound..bound + length;
            prop_assert_eq!(memory.is_ram(&range), range.clone().all(ram));
        }
    }
}
