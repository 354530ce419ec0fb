//! The audit against a look at every page, with the rules told frame by frame.

use super::{Audit, AuditedLeaf, Broken, Finding, Machine, Region, Space, Use, Uses};
use crate::ownership::tests::map::FakeMap;
use crate::{Block, Epochs, Owner, Ownership, SecretSlot, Secrets, Word};
use addr::{FrameRange, Hfn, HostPhysical};
use proptest::prelude::*;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

/// Frames of the machine.
const FRAMES: u64 = 48;

fn range(start: u64, count: u64) -> FrameRange<HostPhysical> {
    FrameRange::with_count(Hfn::new(start), count)
}

/// Uses, one for each frame.
#[derive(Clone, Debug)]
struct Plain(Vec<Use>);

impl Plain {
    fn of(&self, frame: Hfn) -> Use {
        self.0[usize::try_from(frame.raw()).unwrap()]
    }
}

impl Uses for Plain {
    fn run(&self, frames: FrameRange<HostPhysical>) -> (Use, u64) {
        let used = self.of(frames.start);
        (used, frames.iter().take_while(|frame| self.of(*frame) == used).count() as u64)
    }

    /// Secret 3 is nobody's.
    fn task_of(&self, secret: u32) -> Option<u32> {
        (secret < 3).then_some(secret % 2)
    }
}

fn used() -> impl Strategy<Value = Use> {
    prop_oneof![
        Just(Use::Hv),
        Just(Use::Published),
        Just(Use::Runtime),
        Just(Use::Registers),
        Just(Use::Device),
        (0..2_u32).prop_map(Use::Vm),
        (0..2_u32).prop_map(Use::VmSecret),
        (0..2_u32).prop_map(Use::Task),
        (0..4_u32).prop_map(Use::Secret),
        Just(Use::Buffer),
        Just(Use::Vacant),
    ]
}

/// Uses in runs, so that leaves of several frames can be right.
fn plain() -> impl Strategy<Value = Plain> {
    prop::collection::vec((used(), 1..12_usize), 1..20).prop_map(|runs| {
        let frames = runs.into_iter().flat_map(|(used, count)| vec![used; count]);
        let rest = core::iter::repeat(Use::Hv);
        Plain(frames.chain(rest).take(usize::try_from(FRAMES).unwrap()).collect())
    })
}

fn space() -> impl Strategy<Value = Space> {
    let number = || 0..2_u32;
    prop_oneof![
        Just(Space::Hv),
        number().prop_map(Space::Window),
        number().prop_map(Space::Task),
        number().prop_map(Space::SecondStage),
    ]
}

fn leaf() -> impl Strategy<Value = AuditedLeaf> {
    let rights = any::<[bool; 3]>();
    // Most leaves of real tables are not writable code.
    let size = prop::sample::select(vec![1, 512, 512 * 512]);
    (0..FRAMES, 1..10_u64, rights, size).prop_map(|(start, count, [write, execute, user], size)| {
        let frames = FrameRange::new(Hfn::new(start), Hfn::new((start + count).min(FRAMES)));
        let page = 0xf_ffff_ffff_fff0 + start;
        AuditedLeaf { page, frames, size, write, execute, user }
    })
}

/// Who may have a frame mapped: the rules, asked of the frame.
fn may_map(space: Space, user: bool, frame: Use, secrets: &impl Uses) -> bool {
    let is_supervisors = space == Space::Hv || matches!(space, Space::Task(_)) && !user;
    let tasks = |task| space == Space::Task(task) && user;
    let any_task = matches!(space, Space::Task(_)) && user;
    let any_vm = matches!(space, Space::SecondStage(_));
    let window = matches!(space, Space::Window(_));
    match frame {
        Use::Hv => is_supervisors,
        Use::Published => is_supervisors || any_vm,
        Use::Runtime => is_supervisors || any_task,
        Use::Registers => is_supervisors || any_vm,
        Use::Device => any_vm,
        Use::Vm(vm) => window || space == Space::SecondStage(vm),
        Use::VmSecret(vm) => space == Space::SecondStage(vm),
        Use::Task(task) => window || tasks(task),
        Use::Secret(secret) => secrets.task_of(secret).is_some_and(tasks),
        Use::Buffer | Use::Vacant => false,
    }
}

/// What is wrong with one page, by the first sentence that applies.
fn judge(space: Space, leaf: AuditedLeaf, frame: Use, secrets: &impl Uses) -> Option<Broken> {
    let AuditedLeaf { write, execute, user, .. } = leaf;
    let second_stage = matches!(space, Space::SecondStage(_));
    let of_tasks = matches!(space, Space::Task(_)) && user;
    if !may_map(space, user, frame, secrets) {
        return Some(Broken::Foreign(frame));
    }
    if write && execute && !second_stage {
        return Some(Broken::WritableCode);
    }
    if user && matches!(space, Space::Hv | Space::Window(_)) {
        return Some(Broken::UserAccess);
    }
    let never_executed = matches!(space, Space::Window(_))
        || matches!(frame, Use::Secret(_))
        || second_stage && frame == Use::Published;
    let never_written =
        second_stage && frame == Use::Published || of_tasks && frame == Use::Runtime;
    (execute && never_executed || write && never_written).then_some(Broken::Excess(frame))
}

fn first_finding(tables: &[(Space, AuditedLeaf)], plain: &Plain) -> Option<Finding> {
    tables.iter().find_map(|(space, leaf)| {
        let pages = (0..).map(|offset| leaf.page.wrapping_add(offset));
        leaf.frames.iter().zip(pages).find_map(|(frame, page)| {
            let broken = judge(*space, *leaf, plain.of(frame), plain)?;
            Some(Finding::Leaf { space: *space, page, frame, broken })
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Nothing wrong is missed, nothing right is found, and the first finding is the one told.
    #[test]
    fn judges_like_a_look_at_every_page(
        plain in plain(),
        tables in prop::collection::vec((space(), leaf()), 1..4),
    ) {
        let mut audit = Audit::new(&plain);
        for (space, leaf) in &tables {
            audit.leaf(*space, *leaf);
        }
        prop_assert_eq!(audit.outcome().err(), first_finding(&tables, &plain));
        prop_assert_eq!(audit.runs(), tables.len() as u64);
        for kind in [Space::Hv, Space::Window(7), Space::Task(7), Space::SecondStage(7)] {
            let alike = |space: Space| {
                core::mem::discriminant(&space) == core::mem::discriminant(&kind)
            };
            let of_size = |size: u64| -> u64 {
                let leaves = tables.iter().filter(|(space, leaf)| alike(*space) && leaf.size == size);
                leaves.map(|(_, leaf)| leaf.frames.count().div_ceil(size)).sum()
            };
            prop_assert_eq!(audit.leaves(kind), [1, 512, 512 * 512].map(of_size));
        }
    }

    /// Tables in which everything is as it must be, with one leaf more that is wrong or right.
    #[test]
    fn finds_the_one_leaf_that_is_wrong(
        plain in plain(),
        tables in prop::collection::vec((space(), leaf()), 1..40),
        place: prop::sample::Index,
        odd in (space(), leaf()),
    ) {
        let mut tables = tables;
        tables.retain(|leaf| first_finding(&[*leaf], &plain).is_none());
        tables.insert(place.index(tables.len() + 1), odd);
        let mut audit = Audit::new(&plain);
        tables.iter().for_each(|(space, leaf)| audit.leaf(*space, *leaf));
        prop_assert_eq!(audit.outcome().err(), first_finding(&[odd], &plain));
    }

    /// The first frame whose task is not there is found, and no other.
    #[test]
    fn finds_what_an_ended_task_has_left(plain in plain(), there in any::<[bool; 2]>()) {
        let is_there = |task: u32| there.get(task as usize).copied().unwrap_or(false);
        let is_left = |frame: &Hfn| match plain.of(*frame) {
            Use::Task(task) => !is_there(task),
            Use::Secret(secret) => !plain.task_of(secret).is_some_and(is_there),
            _ => false,
        };
        let mut audit = Audit::new(&plain);
        audit.owners(range(0, FRAMES), is_there);
        let first = range(0, FRAMES).iter().find(is_left);
        let finding = first.map(|frame| Finding::Left { frame, used: plain.of(frame) });
        prop_assert_eq!(audit.outcome().err(), finding);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn runs_of_regions_are_of_one_use(
        regions in prop::collection::vec((0..FRAMES, 0..20_u64, used()), 0..6),
        start in 0..FRAMES,
        count in 1..20_u64,
    ) {
        let regions: Vec<Region> =
            regions.into_iter().map(|(start, count, used)| (range(start, count), used)).collect();
        let of = |frame| {
            let found = regions.iter().find(|(region, _)| region.contains(frame));
            found.map_or(Use::Device, |(_, used)| *used)
        };
        let frames = range(start, count);
        let (used, run) = regions.run(frames);
        prop_assert!((1..=count).contains(&run));
        prop_assert!(range(start, run).iter().all(|frame| of(frame) == used));
    }

    /// With a pool between fixed parts, as they lie in a real machine.
    #[test]
    fn runs_of_a_machine_are_of_one_use(
        owners in prop::collection::vec((0..5_u32, any::<bool>()), 0..40),
        start in 0..4 * 512_u64,
        count in 1..4 * 512_u64,
        wanted in 0..3_u64,
    ) {
        let (words, blocks) = (vec![Word::default(); 1024], vec![Block::EMPTY; 2]);
        let mut map = FakeMap::new(2048, 512);
        let mut pool =
            Ownership::<_, _>::new(range(512, 1024), 7, words, blocks, &mut map).unwrap();
        let mut secrets = Secrets::new(vec![SecretSlot::EMPTY; 2], 2);
        let epochs = Epochs::<1>::new();
        let secret = secrets.create(4, wanted << 21, &mut pool, &epochs, &mut map).ok();
        let owner = |kind| {
            [Owner::Hv, Owner::Vm(1), Owner::Task(1), Owner::Task(2), Owner::Device][kind as usize]
        };
        for (kind, stays) in owners {
            let Ok(frame) = pool.allocate(owner(kind), &epochs, &mut map) else { continue };
            if !stays {
                pool.free(frame, owner(kind), &epochs, &mut map).unwrap();
            }
        }
        let regions = [(range(520, 1), Use::Published), (range(1500, 90), Use::Vm(0))];
        let machine = Machine { regions: &regions, pool: &pool, secrets: &secrets };
        let of = |frame: Hfn| {
            let fixed = regions.iter().find(|(region, _)| region.contains(frame));
            let used = fixed.map(|(_, used)| *used).or(pool.used(frame));
            used.unwrap_or(Use::Device)
        };
        let frames = range(start, count);
        let (used, run) = machine.run(frames);
        prop_assert!((1..=count).contains(&run));
        prop_assert!(range(start, run).iter().all(|frame| of(frame) == used));
        if let Some(secret) = secret {
            prop_assert_eq!(machine.task_of(secret.raw()), Some(4));
            prop_assert_eq!(machine.task_of(secret.raw() ^ 1), None);
        }
        // What no owner has is in the direct map, or counts as nobody's.
        for frame in pool.range().iter() {
            let present = map.present[usize::try_from(frame.raw()).unwrap()];
            prop_assert_eq!(pool.used(frame) == Some(Use::Hv), present);
        }
    }
}

#[test]
fn a_finding_says_where() {
    let plain = Plain(vec![Use::Hv, Use::Task(2)]);
    let mut audit = Audit::new(&plain);
    let page = 0xf_fff8_0000_0000;
    let (write, execute, user) = (true, false, false);
    let leaf = AuditedLeaf { page, frames: range(0, 2), size: 1, write, execute, user };
    audit.leaf(Space::Hv, leaf);
    assert_eq!(
        audit.outcome().unwrap_err().to_string(),
        "the hypervisor's table at 0xffff800000001000, frame hpa:0x1: it reaches task 2's"
    );
    let mut audit = Audit::new(&plain);
    audit.owners(range(0, 2), |_| false);
    assert_eq!(
        audit.outcome().unwrap_err().to_string(),
        "frame hpa:0x1 is still task 2's, which has ended"
    );
}
