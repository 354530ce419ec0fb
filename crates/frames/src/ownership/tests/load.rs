//! A million operations against a plain model, and a refusal of memory at every single point.

use super::map::FakeMap;
use crate::{Audit, AuditedLeaf, Block, Epochs, FrameState, NoTables, Owner, Ownership};
use crate::{OwnershipError, Space, Use, Uses, Word};
use addr::{FrameRange, Hfn, HostPhysical};
use std::vec;
use std::vec::Vec;

const CPUS: usize = 3;
/// log2 of the frames in a block.
const SHIFT: u32 = 4;
const BLOCK: usize = 1 << SHIFT;
const FRAMES: usize = 24 * BLOCK;
const USED: usize = 5;

type Pool = Ownership<Vec<Word>, Vec<Block>>;

impl Uses for World {
    fn run(&self, frames: FrameRange<HostPhysical>) -> (Use, u64) {
        (self.pool.used(frames.start).unwrap_or(Use::Device), 1)
    }
    /// The one secret is task 1's.
    fn task_of(&self, _secret: u32) -> Option<u32> {
        Some(1)
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((value ^ value >> 31) % n as u64).unwrap()
    }
}

/// What the model knows of a frame.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Frame {
    state: FrameState,
    windows: u32,
    /// Who wrote to it since it was zeroed.
    data: Option<Owner>,
    /// CPUs that may still reach it through the direct map.
    direct: [bool; CPUS],
    /// CPUs that may still reach it as its last owner.
    last: [bool; CPUS],
}

struct World {
    pool: Pool,
    epochs: Epochs<CPUS>,
    map: FakeMap,
    frames: Vec<Frame>,
    /// Frames that each owner has, for a quick choice.
    owned: Vec<(usize, Owner)>,
}

fn hfn(frame: usize) -> Hfn {
    Hfn::new(frame as u64)
}

fn owner(number: usize) -> Owner {
    [Owner::Hv, Owner::Vm(1), Owner::Vm(2), Owner::Task(1), Owner::Secret(7), Owner::Device][number]
}

impl World {
    fn new() -> Self {
        let (words, blocks) = (vec![Word::default(); FRAMES], vec![Block::EMPTY; FRAMES / BLOCK]);
        let range = FrameRange::with_count(hfn(0), FRAMES as u64);
        let mut map = FakeMap::new(FRAMES, BLOCK);
        let pool = Pool::with_blocks(range, USED as u64, words, blocks, SHIFT, &mut map).unwrap();
        let epochs = Epochs::new();
        (0..CPUS).for_each(|cpu| epochs.enter(cpu));
        let frame = |number| Frame {
            state: if number < USED { FrameState::Owned(Owner::Hv) } else { FrameState::Free },
            windows: 0,
            data: None,
            direct: [true; CPUS],
            last: [false; CPUS],
        };
        let owned = (0..USED).map(|number| (number, Owner::Hv)).collect();
        let frames = (0..FRAMES).map(frame).collect();
        Self { pool, epochs, map, frames, owned }
    }

    /// What a CPU may reach grows with what is mapped.
    fn walk(&mut self) {
        for (frame, present) in self.frames.iter_mut().zip(&self.map.present) {
            frame.direct.iter_mut().for_each(|direct| *direct |= present);
        }
    }

    fn allocate(&mut self, owner: Owner) -> Result<(), OwnershipError> {
        let before = self.map.present.clone();
        let outcome = self.pool.allocate(owner, &self.epochs, &mut self.map);
        if before != self.map.present {
            self.walk();
        }
        let frame = usize::try_from(outcome?.raw()).unwrap();
        self.gives(frame, owner);
        Ok(())
    }

    /// Checks that a frame may go to an owner, who then writes to it.
    fn gives(&mut self, number: usize, owner: Owner) {
        let frame = &mut self.frames[number];
        assert_eq!((frame.state, frame.windows, frame.data), (FrameState::Free, 0, None));
        assert_eq!(frame.last, [false; CPUS], "{number} is within reach of its last owner");
        assert!(!self.map.junk[number], "{number} was never zeroed");
        if owner == Owner::Hv {
            assert!(self.map.present[number]);
        } else {
            assert_eq!(frame.direct, [false; CPUS], "{number} is within reach of the direct map");
        }
        (frame.state, frame.data) = (FrameState::Owned(owner), Some(owner));
        self.owned.push((number, owner));
    }

    fn free(&mut self, number: usize, owner: Owner) -> Result<(), OwnershipError> {
        let frame = &mut self.frames[number];
        let expected = if frame.state != FrameState::Owned(owner) {
            Err(OwnershipError::NotOwner(hfn(number)))
        } else if frame.windows > 0 {
            Err(OwnershipError::WindowOpen(hfn(number)))
        } else {
            Ok(())
        };
        let outcome = self.pool.free(hfn(number), owner, &self.epochs, &mut self.map);
        assert_eq!(outcome, expected);
        if outcome.is_ok() {
            (frame.state, frame.last) = (FrameState::Quarantined, [true; CPUS]);
            self.owned.retain(|(other, _)| *other != number);
        }
        outcome
    }

    fn flush(&mut self, cpu: usize) {
        let Some(due) = self.epochs.due(cpu) else { return };
        for (frame, present) in self.frames.iter_mut().zip(&self.map.present) {
            frame.direct[cpu] = *present;
            frame.last[cpu] = false;
        }
        due.done();
    }

    fn flush_all(&mut self) {
        self.epochs.request();
        (0..CPUS).for_each(|cpu| self.flush(cpu));
    }

    fn reclaim(&mut self, most: u32) -> u32 {
        let (frames, junk) = (&mut self.frames, &mut self.map.junk);
        self.pool.reclaim(&self.epochs, most, |frame| {
            let number = usize::try_from(frame.raw()).unwrap();
            junk[number] = false;
            let frame = &mut frames[number];
            assert_eq!(frame.state, FrameState::Quarantined);
            (frame.state, frame.data) = (FrameState::Free, None);
        })
    }

    fn bring_back(&mut self, keep: u32) -> Result<u32, OwnershipError> {
        let outcome = self.pool.bring_back(keep, &mut self.map);
        self.walk();
        outcome
    }

    fn window(&mut self, number: usize, opens: bool) {
        let frame = &mut self.frames[number];
        let allowed = matches!(frame.state, FrameState::Owned(Owner::Vm(_) | Owner::Task(_)));
        let expected = if opens { allowed && frame.windows < 31 } else { frame.windows > 0 };
        let outcome = match opens {
            true => self.pool.open_window(hfn(number)),
            false => self.pool.close_window(hfn(number)),
        };
        assert_eq!(outcome.is_ok(), expected);
        match outcome {
            Ok(()) if opens => frame.windows += 1,
            Ok(()) => frame.windows -= 1,
            Err(error) => assert_eq!(error, OwnershipError::NoWindow(hfn(number))),
        }
    }

    /// Looks at everything.
    fn check(&self) {
        assert!(!self.map.misused);
        let mut count = [0_u32; 2];
        let (mut large, mut small) = (0, 0);
        for (number, frame) in self.frames.iter().enumerate() {
            assert_eq!(self.pool.state(hfn(number)), Some(frame.state));
            count[0] += u32::from(frame.state == FrameState::Free);
            count[1] += u32::from(frame.state == FrameState::Quarantined);
            let is_hv = frame.state == FrameState::Owned(Owner::Hv);
            let is_large = self.map.large[number / BLOCK];
            assert_eq!(self.map.present[number], is_large || is_hv);
            assert!(self.map.present[number] || !self.map.junk[number], "{number} left unzeroed");
            if self.map.present[number] {
                assert!(matches!(frame.data, None | Some(Owner::Hv)), "{number}: {frame:?}");
            }
            small += u64::from(is_hv && !is_large);
        }
        large += self.map.large.iter().map(|large| u64::from(*large)).sum::<u64>();
        assert_eq!(count, [self.pool.free_frames(), self.pool.quarantined_frames()]);
        assert_eq!((large, small), (self.pool.leaves().large, self.pool.leaves().small));
        assert_eq!(self.pool.state(hfn(FRAMES)), None);
        self.audit();
    }

    /// The audit finds nothing in the direct map and the owners' tables, and finds any leaf in them
    /// that is one too many.
    fn audit(&self) {
        let audit = |space, number, user| {
            let (frames, page) = (FrameRange::with_count(hfn(number), 1), 0);
            let mut audit = Audit::new(self);
            let leaf = AuditedLeaf { page, frames, size: 1, write: true, execute: false, user };
            audit.leaf(space, leaf);
            audit.outcome().is_ok()
        };
        for (number, frame) in self.frames.iter().enumerate() {
            let owned = |owner| frame.state == FrameState::Owned(owner);
            assert_eq!(audit(Space::Hv, number, false), self.map.present[number]);
            assert_eq!(audit(Space::Task(1), number, false), self.map.present[number]);
            let tasks = [owned(Owner::Task(1)) || owned(Owner::Secret(7)), false];
            assert_eq!([1, 2].map(|task| audit(Space::Task(task), number, true)), tasks);
            let vms = [1, 2].map(|vm| owned(Owner::Vm(vm)));
            assert_eq!([1, 2].map(|vm| audit(Space::SecondStage(vm), number, true)), vms);
            let window = owned(Owner::Task(1)) || vms.contains(&true);
            assert_eq!(audit(Space::Window(0), number, false), window);
            assert!(window || frame.windows == 0);
        }
    }

    /// Everything is given back, and the pool is as new.
    fn end(mut self) {
        for number in 0..FRAMES {
            while self.frames[number].windows > 0 {
                self.window(number, false);
            }
        }
        for (number, owner) in self.owned.clone() {
            self.free(number, owner).unwrap();
        }
        self.flush_all();
        self.reclaim(u32::MAX);
        self.bring_back(0).unwrap();
        self.check();
        assert_eq!(self.pool.free_frames() as usize, FRAMES);
        assert!(self.map.large.iter().all(|large| *large));
        assert_eq!(self.pool.leaves().small, 0);
    }

    /// One operation, drawn with an inclination to take (`bias` up to 8) or to free.
    fn step(&mut self, random: &mut Random, bias: usize) -> Result<(), OwnershipError> {
        match random.below(16) {
            kind if kind < bias => self.allocate(owner(random.below(6))),
            0..=8 => {
                let Some(&(frame, owner)) = self.owned.get(random.below(FRAMES)) else {
                    return Ok(());
                };
                self.free(frame, owner)
            }
            9 => self.free(random.below(FRAMES), owner(random.below(6))),
            10 => {
                self.epochs.request();
                Ok(())
            }
            11 => {
                self.flush(random.below(CPUS));
                Ok(())
            }
            12 => {
                self.reclaim(u32::try_from(random.below(40)).unwrap());
                Ok(())
            }
            13 => {
                self.window(random.below(FRAMES), true);
                Ok(())
            }
            14 => {
                // Close what is open, or try.
                for _ in 0..3 {
                    self.window(random.below(FRAMES), false);
                }
                Ok(())
            }
            _ if random.below(2) == 0 => {
                self.bring_back(u32::try_from(random.below(3)).unwrap()).map(drop)
            }
            _ => {
                let owner = owner(1 + random.below(5));
                let range = self.pool.allocate_block(owner, &self.epochs, &mut self.map);
                self.walk();
                for frame in range?.iter() {
                    self.gives(usize::try_from(frame.raw()).unwrap(), owner);
                }
                Ok(())
            }
        }
    }
}

#[test]
fn a_million_operations_match_a_plain_model() {
    let mut random = Random(1);
    let mut world = World::new();
    let (mut splits, mut waits, mut shortages) = (0, 0, 0);
    for step in 0..1_000_000 {
        // Fills up and empties in turn.
        let bias = if step / 4000 % 2 == 0 { 7 } else { 2 };
        match world.step(&mut random, bias) {
            Err(OwnershipError::Wait(request)) => {
                waits += 1;
                assert!(request > world.epochs.acknowledged() || world.pool.waits_for().is_some());
            }
            Err(OwnershipError::OutOfMemory) => shortages += 1,
            Err(OwnershipError::NoTables(_)) => panic!("there are tables"),
            _ => {}
        }
        if step % 500 == 0 {
            world.check();
        }
        splits = world.pool.leaves().splits;
    }
    // All of it was met on the way.
    let met = [splits, waits, shortages, world.pool.leaves().collapses];
    assert!(met.iter().all(|count| *count > 50), "{met:?}");
    world.end();
}

/// The same script again and again; each time the next request for memory is refused.
#[test]
fn a_refusal_at_any_point_changes_nothing() {
    const STEPS: usize = 40_000;
    for point in 0.. {
        let mut random = Random(3);
        let mut world = World::new();
        world.map.allowance = point;
        let mut refused = false;
        for step in 0..STEPS {
            let bias = if step / 2000 % 2 == 0 { 7 } else { 2 };
            let before = (world.map.allowance == 0 && !refused)
                .then(|| (world.pool.clone(), world.map.present.clone()));
            if let Err(OwnershipError::NoTables(NoTables)) = world.step(&mut random, bias) {
                let before = before.unwrap();
                // Blocks that were taken back before the refusal stay.
                if world.pool.leaves().large == before.0.leaves().large {
                    // Except that it may have learnt who has flushed.
                    let (mut pool, present) = before;
                    pool.acknowledged = world.pool.acknowledged;
                    assert_eq!((&world.pool, &world.map.present), (&pool, &present));
                }
                world.check();
                refused = true;
                world.map.allowance = u64::MAX;
            }
        }
        world.map.allowance = u64::MAX;
        world.end();
        if !refused {
            assert!(point > 100, "the script asks for memory only {point} times");
            break;
        }
    }
}

#[test]
fn pools_that_do_not_fit_are_refused() {
    let new = |start, count, used, words, blocks| {
        let range = FrameRange::with_count(Hfn::new(start), count);
        Ownership::<_, _>::new(
            range,
            used,
            vec![Word::default(); words],
            vec![Block::EMPTY; blocks],
            &mut FakeMap::new(2048, 512),
        )
        .map(drop)
    };
    assert_eq!(new(512, 1024, 3, 1024, 2), Ok(()));
    for (start, count, used, words, blocks) in [
        (511, 1024, 3, 1024, 2),
        (512, 1000, 3, 1024, 2),
        (512, 1024, 1025, 1024, 2),
        (512, 1024, 3, 1023, 2),
        (512, 1024, 3, 1024, 1),
        (0, 1 << 24, 0, 1024, 2),
    ] {
        assert_eq!(new(start, count, used, words, blocks), Err(OwnershipError::BadPool));
    }
    assert!(size_of::<Word>() * 512 + size_of::<Block>() <= 8 * 512);
}
