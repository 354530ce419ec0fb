//! The list of pages that `kexec` moves before it starts the other kernel (Linux,
//! include/linux/kexec.h, `kimage_entry_t`; read as by `relocate_kernel`, arch/x86/kernel).
//!
//! An entry is the address of a page, and four flags: a page to go on moving to, a page of entries to
//! go on reading at, the end, or a page to move to the next destination. A segment that the old
//! kernel was given begins with a destination of its own.

use crate::Refusal;
use addr::{FrameRange, Gfn, Gpa, GuestPhysical};
use arrayvec::ArrayVec;

const DESTINATION: u64 = 1 << 0;
const INDIRECTION: u64 = 1 << 1;
const DONE: u64 = 1 << 2;
const SOURCE: u64 = 1 << 3;
const ADDRESS: u64 = !0xfff;
const ENTRY_BYTES: u64 = 8;

/// Most segments: `KEXEC_SEGMENT_MAX`.
pub const MOST_SEGMENTS: usize = 16;

/// Where pages are moved to, in the list's order.
pub type Segments = ArrayVec<FrameRange<GuestPhysical>, MOST_SEGMENTS>;

/// Follows the list that begins with `head`, of at most `most` entries: `read` gives the word at an
/// address, a multiple of 8, and `copy` is told each page to move, from and to. Both can refuse.
///
/// # Errors
/// See [`Refusal`]. Pages may have been copied by then.
pub fn walk(
    head: u64,
    most: u64,
    mut read: impl FnMut(Gpa) -> Option<u64>,
    mut copy: impl FnMut(Gfn, Gfn) -> Option<()>,
) -> Result<Segments, Refusal> {
    let mut segments = Segments::new();
    let mut next = None;
    let mut entry = head;
    for _ in 0..most {
        let page = Gpa::new(entry & ADDRESS);
        if entry & DESTINATION != 0 {
            let segment = FrameRange::with_count(page.frame(), 0);
            segments.try_push(segment).map_err(|_| Refusal::Segments)?;
        } else if entry & INDIRECTION != 0 {
            next = Some(page);
        } else if entry & DONE != 0 {
            return Ok(segments);
        } else if entry & SOURCE != 0 {
            let segment = segments.last_mut().ok_or(Refusal::NoDestination)?;
            let to = segment.end;
            segment.end = to.checked_add(1).ok_or(Refusal::Place)?;
            copy(page.frame(), to).ok_or(Refusal::Place)?;
        }
        // An entry without a flag means nothing.
        let at = next.ok_or(Refusal::Unread)?;
        entry = read(at).ok_or(Refusal::Unread)?;
        next = at.checked_add(ENTRY_BYTES);
    }
    Err(Refusal::Endless)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::vec;
    use std::vec::Vec;

    /// A list as Linux builds it: pages of 512 entries, the last of which leads to the next.
    fn linux(segments: &[(u64, Vec<u64>)]) -> (u64, BTreeMap<u64, u64>) {
        let mut entries = vec![];
        for (destination, sources) in segments {
            entries.push(destination << 12 | DESTINATION);
            entries.extend(sources.iter().map(|source| source << 12 | SOURCE));
        }
        entries.push(DONE);
        let mut words = BTreeMap::new();
        let page = |number: usize| 0x10_0000 + (number as u64) * 0x1000;
        for (number, chunk) in entries.chunks(511).enumerate() {
            for (index, entry) in (0..).zip(chunk) {
                words.insert(page(number) + index * 8, *entry);
            }
            words.insert(page(number) + 511 * 8, page(number + 1) | INDIRECTION);
        }
        (page(0) | INDIRECTION, words)
    }

    fn lists() -> impl Strategy<Value = Vec<(u64, Vec<u64>)>> {
        let sources = prop::collection::vec(1_u64..1000, 0..700);
        prop::collection::vec((1_u64..100_000, sources), 0..=MOST_SEGMENTS)
    }

    proptest! {
        #[test]
        fn what_linux_builds_is_understood(list in lists()) {
            let (head, words) = linux(&list);
            let mut copies = vec![];
            let copy = |from: Gfn, to: Gfn| {
                copies.push((from.raw(), to.raw()));
                Some(())
            };
            let segments = walk(head, 20_000, |at| words.get(&at.raw()).copied(), copy).unwrap();
            let expected: Vec<(u64, u64)> =
                list.iter().flat_map(|(to, sources)| sources.iter().copied().zip(*to..)).collect();
            prop_assert_eq!(copies, expected);
            let found: Vec<(u64, u64)> =
                segments.iter().map(|segment| (segment.start.raw(), segment.count())).collect();
            let expected: Vec<(u64, u64)> =
                list.iter().map(|(to, sources)| (*to, sources.len() as u64)).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn any_words_come_to_an_end(
            head: u64, words in prop::collection::vec(any::<u64>(), 1..64), most in 0_u64..500,
        ) {
            let mut steps = 0;
            // Every address reads as something, so that circles are common.
            let read = |at: Gpa| {
                steps += 1;
                words.get(addr::length(at.raw() / 8) % words.len()).copied()
            };
            let _ = walk(head, most, read, |_, to| (to.raw() != 0).then_some(()));
            prop_assert!(steps <= most);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let of = |entries: &[u64], most| {
            let read = |at: Gpa| entries.get(addr::length(at.raw() / 8)).copied();
            walk(INDIRECTION, most, read, |_, to| (to.raw() != 9).then_some(()))
        };
        assert_eq!(of(&[DONE], 9), Ok(Segments::new()));
        assert_eq!(of(&[0, 0], 9), Err(Refusal::Unread));
        assert_eq!(of(&[INDIRECTION], 99), Err(Refusal::Endless));
        assert_eq!(of(&[SOURCE, DONE], 9), Err(Refusal::NoDestination));
        assert_eq!(of(&[0x8000 | DESTINATION, SOURCE, DONE], 9).map(|all| all.len()), Ok(1));
        assert_eq!(of(&[0x9000 | DESTINATION, SOURCE, DONE], 9), Err(Refusal::Place));
        assert_eq!(of(&[DESTINATION; 17], 99), Err(Refusal::Segments));
        assert_eq!(walk(DONE, 1, |_| None, |_, _| None), Ok(Segments::new()));
        assert_eq!(walk(SOURCE, 1, |_| None, |_, _| None), Err(Refusal::NoDestination));
    }
}
