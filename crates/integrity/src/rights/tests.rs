//! The counters against the naive model: three numbers for every frame.

use super::*;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

/// Two 1 GiB blocks and some.
const FRAMES: u64 = 2 * 512 * 512 + 3 * 512 + 5;

/// What happens to the counters.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A new mapping.
    Map { start: u64, count: u64, rights: Rights },
    /// Part of a mapping gets other rights, or none and is gone.
    Change { which: usize, from: u64, to: u64, rights: Option<Rights> },
}

fn any_rights() -> impl Strategy<Value = Rights> {
    (0u8..8).prop_map(Rights::from_bits_truncate)
}

fn place() -> impl Strategy<Value = u64> {
    let near =
        (prop::sample::select(&[0, 512, 1024, 512 * 512, 2 * 512 * 512, FRAMES][..]), 0..10_u64);
    prop_oneof![near.prop_map(|(at, off)| (at + off).saturating_sub(5)), 0..FRAMES + 20]
}

fn step() -> impl Strategy<Value = Step> {
    let map = (place(), place(), any_rights()).prop_map(|(a, b, rights)| Step::Map {
        start: a.min(b),
        count: a.abs_diff(b),
        rights,
    });
    let leaf = (0..3_u32, 0..600_u64, any_rights()).prop_map(|(level, number, rights)| {
        let size = 1 << (9 * level);
        Step::Map { start: number % (FRAMES / size) * size, count: size, rights }
    });
    let change = (0..8_usize, place(), place(), prop::option::of(any_rights())).prop_map(
        |(which, a, b, rights)| Step::Change { which, from: a.min(b), to: a.max(b), rights },
    );
    prop_oneof![1 => map, 1 => leaf, 2 => change]
}

fn range(start: u64, end: u64) -> FrameRange<GuestPhysical> {
    FrameRange::new(Gfn::new(start), Gfn::new(end))
}

/// Mappings that there are: start, end, rights.
type Mappings = Vec<(u64, u64, Rights)>;

/// Does a step to both; no more than `most` mappings of a frame.
fn run(counters: &mut Counters<'_>, mappings: &mut Mappings, step: Step, most: usize) {
    match step {
        Step::Map { start, count, rights } if mappings.len() < most => {
            counters.map(range(start, start + count), rights);
            mappings.push((start, start + count, rights));
        }
        Step::Map { .. } => {}
        Step::Change { which, from, to, rights } => {
            let Some((start, end, old)) = mappings.get(which).copied() else { return };
            let (from, to) = (from.clamp(start, end), to.clamp(start, end));
            let change = range(from, to);
            let result = match rights {
                Some(new) => counters.update(change, old, new),
                None => counters.unmap(change, old),
            };
            assert_eq!(result, Ok(()));
            mappings.remove(which);
            let parts = [(start, from, Some(old)), (from, to, rights), (to, end, Some(old))];
            let left = parts.into_iter().filter(|(start, end, _)| start < end);
            mappings.extend(left.filter_map(|(start, end, rights)| Some((start, end, rights?))));
        }
    }
}

/// The frames around which something changes.
fn points(steps: &[Step]) -> Vec<u64> {
    let ends = steps.iter().flat_map(|step| match *step {
        Step::Map { start, count, .. } => [start, start + count],
        Step::Change { from, to, .. } => [from, to],
    });
    let around = ends
        .chain([512, 512 * 512, FRAMES])
        .flat_map(|at| [at.saturating_sub(513), at.saturating_sub(1), at, at + 1, at + 512]);
    around.filter(|frame| *frame < FRAMES).collect()
}

fn model(mappings: &Mappings, frame: u64, right: Rights) -> u8 {
    let all = mappings
        .iter()
        .filter(|(start, end, rights)| (*start..*end).contains(&frame) && rights.contains(right));
    u8::try_from(all.count()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Changes split mappings into parts that do not overlap: two at a time are never too many.
    #[test]
    fn below_the_limits_counts_are_exact(steps in prop::collection::vec(step(), 1..25)) {
        let mut storage = vec![0xff; usize::try_from(storage_bytes(FRAMES)).unwrap()];
        let mut counters = Counters::new(FRAMES, &mut storage);
        let mut mappings = Mappings::new();
        let points = points(&steps);
        for step in steps {
            run(&mut counters, &mut mappings, step, 2);
            for frame in &points {
                let count = |right| model(&mappings, *frame, right);
                let expected = Collective {
                    readable: count(Rights::READ),
                    writable: count(Rights::WRITE),
                    executable: count(Rights::EXECUTE),
                };
                prop_assert_eq!(counters.collective(Gfn::new(*frame)), Some(expected));
            }
        }
        let totals = counters.iter().fold(Totals::default(), |sum, (_, c)| Totals {
            writable: sum.writable + u64::from(c.writable > 0),
            conflicting: sum.conflicting + u64::from(c.conflicts()),
        });
        prop_assert_eq!(counters.totals(), totals);
        for (start, end, rights) in mappings {
            prop_assert_eq!(counters.unmap(range(start, end), rights), Ok(()));
        }
        prop_assert!(storage.iter().all(|byte| *byte == 0));
    }

    /// What a batch counts is the same as what the changes count one by one.
    #[test]
    fn a_batch_counts_the_same(
        sizes in prop::collection::vec(prop::sample::select(&[1, 3, 250, 512][..]), 1..20),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1..20_usize, 0..3_usize), 0..30),
        wrong in (0..1500_u64, 0..1500_u64),
    ) {
        let storage = || vec![0; usize::try_from(storage_bytes(2000)).unwrap()];
        let (mut single, mut batched) = (storage(), storage());
        let (mut counters, mut collected) =
            (Counters::new(2000, &mut single), Counters::new(2000, &mut batched));
        let mut batch = collected.batch();
        // Neighbours, none mapped yet; a change is of some in a row.
        let ends = sizes.iter().scan(0, |end, count| {
            *end += count;
            Some(*end)
        });
        let ranges: Vec<_> = sizes.iter().zip(ends).map(|(n, end)| range(end - n, end)).collect();
        let mut leaves: Vec<_> = ranges.into_iter().map(|r| (r, Rights::empty())).collect();
        for (first, count, rights) in changes {
            let to = [Rights::empty(), Rights::READ, Rights::READ | Rights::EXECUTE][rights];
            let first = first.index(leaves.len());
            for (range, from) in leaves.iter_mut().skip(first).take(count) {
                prop_assert_eq!(counters.update(*range, *from, to), Ok(()));
                batch.update(*range, *from, to);
                *from = to;
            }
        }
        let wrong = range(wrong.0.min(wrong.1), wrong.0.max(wrong.1));
        let lost = counters.unmap(wrong, Rights::READ);
        batch.unmap(wrong, Rights::READ);
        prop_assert_eq!(batch.finish(), lost);
        prop_assert!(counters.iter().eq(collected.iter()));
    }

    #[test]
    fn beyond_the_limits_no_right_is_lost(steps in prop::collection::vec(step(), 1..60)) {
        let mut storage = vec![0; usize::try_from(storage_bytes(FRAMES)).unwrap()];
        let mut counters = Counters::new(FRAMES, &mut storage);
        let mut mappings = Mappings::new();
        let points = points(&steps);
        for step in steps {
            run(&mut counters, &mut mappings, step, 40);
        }
        for frame in points {
            let rights = mappings.iter().filter(|(start, end, _)| (*start..*end).contains(&frame));
            let expected = rights.fold(Rights::empty(), |sum, (_, _, rights)| sum | *rights);
            let found = counters.collective(Gfn::new(frame)).unwrap().rights();
            prop_assert!(found.contains(expected), "{frame}: {found:?}, not {expected:?}");
        }
    }

    #[test]
    fn what_was_never_counted_is_said(
        steps in prop::collection::vec(step(), 0..6),
        wrong in (place(), place()),
    ) {
        let mut storage = vec![0; usize::try_from(storage_bytes(FRAMES)).unwrap()];
        let mut counters = Counters::new(FRAMES, &mut storage);
        let mut mappings = Mappings::new();
        for step in steps {
            run(&mut counters, &mut mappings, step, 2);
        }
        let start = wrong.0.min(wrong.1);
        let end = wrong.0.max(wrong.1).min(FRAMES).min(start + 3000);
        let before: Vec<u8> = (start..end.max(start))
            .map(|frame| model(&mappings, frame, Rights::WRITE)).collect();
        let without = before.iter().filter(|count| **count == 0).count() as u64;
        let result = counters.unmap(range(start, end), Rights::WRITE);
        prop_assert_eq!(result.err().map_or(0, |error| error.frames), without);
        for (frame, before) in (start..).zip(before) {
            let now = counters.collective(Gfn::new(frame)).unwrap().writable;
            prop_assert_eq!(now, before.saturating_sub(1));
        }
    }
}

#[test]
fn a_full_counter_stays_full() {
    let mut storage = [0; 16];
    let mut counters = Counters::new(8, &mut storage);
    let all = range(0, 8);
    for _ in 0..300 {
        counters.map(all, Rights::all());
    }
    for _ in 0..300 {
        assert_eq!(counters.unmap(all, Rights::all()), Ok(()));
    }
    let collective = counters.collective(Gfn::new(3)).unwrap();
    assert_eq!(collective, Collective { readable: 7, writable: 7, executable: 3 });
}

#[test]
fn a_huge_mapping_that_came_in_parts_goes_as_a_whole() {
    let mut storage = vec![0; usize::try_from(storage_bytes(FRAMES)).unwrap()];
    let mut counters = Counters::new(FRAMES, &mut storage);
    let huge = 512 * 512;
    for start in (0..huge).step_by(512) {
        let middle = start + start / 512;
        counters.map(range(start, middle), Rights::READ);
        counters.map(range(middle, start + 512), Rights::READ);
    }
    assert_eq!(counters.unmap(range(0, huge), Rights::READ), Ok(()));
    assert!(counters.iter().all(|(_, collective)| collective.readable == 0));
    assert_eq!(counters.unmap(range(0, huge), Rights::READ), Err(Uncounted { frames: huge }));
}

#[test]
fn a_full_large_counter_covers_its_parts() {
    let mut storage = vec![0; usize::try_from(storage_bytes(1024)).unwrap()];
    let mut counters = Counters::new(1024, &mut storage);
    for _ in 0..9 {
        counters.map(range(0, 512), Rights::WRITE);
    }
    assert_eq!(counters.unmap(range(5, 7), Rights::WRITE), Ok(()));
    assert_eq!(counters.collective(Gfn::new(5)).unwrap().rights(), Rights::WRITE);
}

#[test]
fn huge_and_backward_ranges_are_clamped() {
    let mut storage = [0; 16];
    let mut counters = Counters::new(9, &mut storage);
    counters.map(range(8, u64::MAX), Rights::WRITE);
    counters.map(range(7, 3), Rights::WRITE);
    counters.map(range(1 << 60, u64::MAX), Rights::WRITE);
    assert_eq!(counters.iter().map(|(_, c)| c.writable).sum::<u8>(), 1);
    assert_eq!(counters.collective(Gfn::new(8)).unwrap().rights(), Rights::WRITE);
    assert_eq!(counters.collective(Gfn::new(9)), None);
}

#[test]
fn storage_is_little_and_may_be_too_small() {
    assert_eq!(storage_bytes(1 << 24), (1 << 24) + (1 << 15) + (1 << 6));
    for length in [0, 1, 2, 3, 512, 514, 515, 1027, 1028, 5000] {
        let mut storage = vec![0; length];
        let mut counters = Counters::new(1 << 40, &mut storage);
        counters.map(range(0, u64::MAX), Rights::READ);
        let frames = counters.iter().count() as u64;
        assert!(storage_bytes(frames) <= length as u64);
    }
}
