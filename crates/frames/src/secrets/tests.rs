//! Secrets against a plain map of handles, with quotas, full tables and lack of frames.

use super::{MOST_BLOCKS, SecretError, SecretHandle, SecretSlot, Secrets};
use crate::ownership::tests::map::FakeMap;
use crate::{Block, Epochs, FrameState, Leaves, NoTables, Owner, Ownership, OwnershipError, Word};
use addr::{FRAMES_PER_2M, FrameRange, Hfn};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

const M2: u64 = 2 << 20;
const BLOCK: usize = 512;
const SLOTS: usize = 3;
const QUOTA: u32 = 4;

/// A pool, secrets in it, and one CPU.
struct World {
    frames: Ownership<Vec<Word>, Vec<Block>>,
    epochs: Epochs<1>,
    map: FakeMap,
    secrets: Secrets<Vec<SecretSlot>>,
}

impl World {
    fn new(blocks: usize, slots: usize, quota: u32) -> Self {
        let range = FrameRange::with_count(Hfn::new(0), (blocks * BLOCK) as u64);
        let words = vec![Word::default(); blocks * BLOCK];
        let mut map = FakeMap::new(blocks * BLOCK, BLOCK);
        let blocks = vec![Block::EMPTY; blocks];
        let frames = Ownership::new(range, 0, words, blocks, &mut map).unwrap();
        let epochs = Epochs::new();
        epochs.enter(0);
        let secrets = Secrets::new(vec![SecretSlot::EMPTY; slots], quota);
        Self { frames, epochs, map, secrets }
    }

    fn flush(&mut self) {
        self.epochs.request();
        self.epochs.due(0).unwrap().done();
        self.frames.reclaim(&self.epochs, u32::MAX, |_| {});
    }

    /// Creates, with the flushes that it takes; there is never more than one.
    fn create(&mut self, task: u32, bytes: u64) -> Result<SecretHandle, SecretError> {
        let Self { frames, epochs, map, secrets } = self;
        match secrets.create(task, bytes, frames, epochs, map) {
            Err(SecretError::Frames(OwnershipError::Wait(_))) => {}
            outcome => return outcome,
        }
        self.flush();
        let Self { frames, epochs, map, secrets } = self;
        let outcome = secrets.create(task, bytes, frames, epochs, map);
        assert!(!matches!(outcome, Err(SecretError::Frames(OwnershipError::Wait(_)))));
        outcome
    }

    fn destroy(&mut self, task: u32, handle: SecretHandle) -> Result<(), SecretError> {
        let Self { frames, epochs, map, secrets } = self;
        secrets.destroy(task, handle, frames, epochs, map)
    }

    /// The blocks of a secret, after a look at each of their frames.
    fn blocks(&mut self, task: u32, handle: SecretHandle) -> Result<Vec<u64>, SecretError> {
        let blocks: Vec<_> = self.secrets.blocks(task, handle)?.collect();
        for frame in blocks.iter().flat_map(|block| block.iter()) {
            let owner = FrameState::Owned(Owner::Secret(handle.raw()));
            assert_eq!(self.frames.state(frame), Some(owner));
            assert!(!self.map.present[usize::try_from(frame.raw()).unwrap()]);
            assert_eq!(self.frames.open_window(frame), Err(OwnershipError::NoWindow(frame)));
        }
        assert!(blocks.iter().all(|block| block.start.is_aligned(FRAMES_PER_2M)));
        Ok(blocks.iter().map(|block| block.start.raw()).collect())
    }
}

#[derive(Clone, Debug)]
enum Op {
    Create(u32, u64),
    /// By which task, and which of all handles ever given.
    Destroy(u32, prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = prop_oneof![
        Just(0),
        1..3 * M2,
        Just(2 * M2),
        Just(M2 + 1),
        Just(MOST_BLOCKS as u64 * M2 + 1),
        any::<u64>(),
    ];
    prop_oneof![
        (0..3_u32, bytes).prop_map(|(task, bytes)| Op::Create(task, bytes)),
        (0..3_u32, any::<prop::sample::Index>()).prop_map(|(task, index)| Op::Destroy(task, index)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn secrets_match_a_plain_map(ops in prop::collection::vec(op(), 0..60)) {
        // Fewer blocks than all quotas together.
        let mut world = World::new(7, SLOTS, QUOTA);
        let mut model: BTreeMap<SecretHandle, (u32, u64)> = BTreeMap::new();
        let mut given: Vec<SecretHandle> = vec![SecretHandle::from_raw(77)];
        for op in ops {
            match op {
                Op::Create(task, bytes) => {
                    let wanted = bytes.div_ceil(M2);
                    let has: u64 = model.values().filter(|s| s.0 == task).map(|s| s.1).sum();
                    let all: u64 = model.values().map(|secret| secret.1).sum();
                    let outcome = world.create(task, bytes);
                    if wanted == 0 || wanted > MOST_BLOCKS as u64 {
                        prop_assert_eq!(outcome, Err(SecretError::BadSize(bytes)));
                    } else if has + wanted > u64::from(QUOTA) {
                        let wanted = u32::try_from(has + wanted).unwrap();
                        prop_assert_eq!(outcome, Err(SecretError::Quota { limit: QUOTA, wanted }));
                    } else if model.len() == SLOTS {
                        prop_assert_eq!(outcome, Err(SecretError::NoSlot));
                    } else if all + wanted > 7 {
                        let none = SecretError::Frames(OwnershipError::OutOfMemory);
                        prop_assert_eq!(outcome, Err(none));
                    } else {
                        let handle = outcome.unwrap();
                        prop_assert!(!given.contains(&handle));
                        given.push(handle);
                        model.insert(handle, (task, wanted));
                    }
                }
                Op::Destroy(task, index) => {
                    let handle = *index.get(&given);
                    let is_theirs = model.get(&handle).is_some_and(|secret| secret.0 == task);
                    let expected = if is_theirs { Ok(()) } else { Err(SecretError::BadHandle) };
                    prop_assert_eq!(world.destroy(task, handle), expected);
                    if is_theirs {
                        model.remove(&handle);
                    }
                    world.flush();
                }
            }
            let mut all = Vec::new();
            for (handle, (task, count)) in &model {
                let blocks = world.blocks(*task, *handle).unwrap();
                prop_assert_eq!(blocks.len() as u64, *count);
                prop_assert_eq!(world.blocks(task + 1, *handle), Err(SecretError::BadHandle));
                all.extend(blocks);
            }
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(all.len(), count, "a block belongs to two secrets");
        }
    }
}

#[test]
fn a_churn_of_secrets_leaves_large_leaves_only() {
    let mut world = World::new(40, 8, 40);
    let mut handles = Vec::new();
    for round in 0..20_u64 {
        handles.push(world.create(1, (round % 7 + 1) * M2).unwrap());
        if handles.len() == 5 {
            for handle in handles.drain(..) {
                world.destroy(1, handle).unwrap();
            }
            world.flush();
        }
    }
    // As large as Linux' test of 64 MiB.
    let handle = world.create(1, MOST_BLOCKS as u64 * M2).unwrap();
    world.destroy(1, handle).unwrap();
    world.flush();
    world.frames.bring_back(0, &mut world.map).unwrap();
    assert_eq!(world.frames.leaves(), Leaves { large: 40, ..Leaves::default() });
    assert!(world.map.large.iter().all(|large| *large));
}

#[test]
fn zeroing_waits_for_the_flush() {
    let mut world = World::new(2, 1, 2);
    let handle = world.create(1, M2).unwrap();
    let blocks = world.blocks(1, handle).unwrap();
    world.destroy(1, handle).unwrap();
    let mut zeroed = Vec::new();
    world.frames.reclaim(&world.epochs, u32::MAX, |frame| zeroed.push(frame.raw()));
    assert!(zeroed.is_empty());
    world.epochs.request();
    world.epochs.due(0).unwrap().done();
    world.frames.reclaim(&world.epochs, u32::MAX, |frame| zeroed.push(frame.raw()));
    zeroed.sort_unstable();
    let all: Vec<_> = (blocks[0]..blocks[0] + FRAMES_PER_2M).collect();
    assert_eq!(zeroed, all);
}

/// Tables and frames end at each point of a secret's life in turn.
#[test]
fn every_allocation_may_fail() {
    const COUNT: usize = 6;
    let bytes = COUNT as u64 * M2;
    let taken = |world: &World| {
        let mut frames = world.frames.range().iter();
        frames.any(|frame| world.frames.state(frame) != Some(FrameState::Free))
    };
    for blocks in 0..COUNT {
        let mut world = World::new(blocks, SLOTS, 32);
        let secrets = world.secrets.clone();
        let expected = SecretError::Frames(OwnershipError::OutOfMemory);
        assert_eq!(world.create(1, bytes), Err(expected));
        assert_eq!((taken(&world), &world.secrets), (false, &secrets));
    }
    for tables in 0..COUNT as u64 {
        let mut world = World::new(COUNT, SLOTS, 32);
        let secrets = world.secrets.clone();
        world.map.allowance = tables;
        let expected = SecretError::Frames(OwnershipError::NoTables(NoTables));
        assert_eq!(world.create(1, bytes), Err(expected));
        assert_eq!((taken(&world), &world.secrets), (false, &secrets));

        world.map.allowance = u64::MAX;
        let handle = world.create(1, bytes).unwrap();
        // Its end needs none.
        world.map.allowance = 0;
        world.destroy(1, handle).unwrap();
        world.flush();
        assert_eq!((taken(&world), world.secrets.blocks_of(1)), (false, 0));
        world.map.allowance = tables;
        assert!(world.frames.bring_back(0, &mut world.map).is_err());
        world.map.allowance = u64::MAX;
        world.frames.bring_back(0, &mut world.map).unwrap();
        assert_eq!(world.frames.leaves().large, COUNT as u64);
    }
}
