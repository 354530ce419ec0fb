//! The protocol under every interleaving of two CPUs, by model checking the code itself; and the
//! harm that comes of each rule's absence.
//!
//! Two blocks of two frames; the hypervisor, a VM and a secret. The TLBs are as bad as they may
//! be: a CPU remembers each translation from the moment it exists until its next flush, and its
//! flush happens right after it has read which request it serves, long before it says so.

use super::map::FakeMap;
use crate::rules::{Enforced, Rules, Sealed};
use crate::{Audit, AuditedLeaf, Block, Epochs, Finding, FrameState, Owner, Ownership, Space};
use crate::{Use, Uses, Word};
use addr::{FrameRange, Hfn, HostPhysical};
use core::hash::Hash;
use core::marker::PhantomData;
use stateright::{Checker, Model, Property};
use std::vec;
use std::vec::Vec;

const CPUS: usize = 2;
const FRAMES: usize = 2;
const SHIFT: u32 = 1;
/// Requests for a flush that are tried in a row.
const REQUESTS: u64 = 3;
const VM: Owner = Owner::Vm(1);
const SECRET: Owner = Owner::Secret(1);
/// Owners with tables of their own.
const FOREIGN: [Owner; 2] = [VM, SECRET];

/// Frames, one bit each.
type Set = u8;

/// The whole machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Machine<R> {
    pool: Ownership<Vec<Word>, Vec<Block>, R>,
    requested: u64,
    served: [u64; CPUS],
    /// Request for which a CPU has flushed without having said so.
    begun: [Option<u64>; CPUS],
    presence: [Presence; CPUS],
    map: FakeMap,
    /// What a CPU may reach through the direct map.
    direct: [Set; CPUS],
    /// What the tables of each foreign owner map, and what a CPU may reach as that owner.
    tables: [Set; 2],
    reach: [[Set; 2]; CPUS],
    windows: [Option<usize>; CPUS],
    /// Frames with data of an owner since they were zeroed.
    data: [Option<Owner>; FRAMES],
    /// An owner found data of another.
    leaked: bool,
}

/// Whether a CPU uses translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Presence {
    Here,
    /// No, with a full TLB; the request it had served before.
    Away(u64),
    /// Not yet: it has shown itself, and has yet to look for requests.
    Back,
    /// Not yet: it has looked first, which is wrong, and found this request.
    Looked(u64, Option<u64>),
}

/// Owners' records, and one secret, of task 1.
struct Records<'a, R>(&'a Ownership<Vec<Word>, Vec<Block>, R>);

impl<R: Rules> Uses for Records<'_, R> {
    fn run(&self, frames: FrameRange<HostPhysical>) -> (Use, u64) {
        (self.0.used(frames.start).unwrap_or(Use::Device), 1)
    }
    fn task_of(&self, secret: u32) -> Option<u32> {
        Some(secret)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Allocate(Owner),
    Free(usize, Owner),
    OpenWindow(usize, usize),
    CloseWindow(usize),
    Request,
    Flush(usize),
    Acknowledge(usize),
    Leave(usize),
    Appear(usize),
    Look(usize),
    Reclaim,
    BringBack,
}

fn bit(frame: usize) -> Set {
    1 << frame
}

fn hfn(frame: usize) -> Hfn {
    Hfn::new(frame as u64)
}

impl<R: Rules + Clone> Machine<R> {
    fn new() -> Self {
        let (words, blocks) = (vec![Word::default(); FRAMES], vec![Block::EMPTY; FRAMES >> SHIFT]);
        let range = FrameRange::with_count(hfn(0), FRAMES as u64);
        let mut map = FakeMap::new(FRAMES, 1 << SHIFT);
        let pool = Ownership::with_blocks(range, 0, words, blocks, SHIFT, &mut map).unwrap();
        Self {
            pool,
            requested: 0,
            served: [0; CPUS],
            begun: [None; CPUS],
            presence: [Presence::Here; CPUS],
            map,
            direct: [(1 << FRAMES) - 1; CPUS],
            tables: [0; 2],
            reach: [[0; 2]; CPUS],
            windows: [None; CPUS],
            data: [None; FRAMES],
            leaked: false,
        }
    }

    fn present(&self) -> Set {
        let frames = self.map.present.iter().enumerate();
        frames.filter(|(_, present)| **present).map(|(frame, _)| bit(frame)).sum()
    }

    /// Does it; `None` if it is refused.
    fn act(&mut self, action: Action, fault: Fault) -> Option<()> {
        let epochs = Epochs::<CPUS>::from_parts(self.requested, self.served);
        match action {
            Action::Allocate(owner) => {
                let before = self.pool.leaves();
                let Ok(frame) = self.pool.allocate(owner, &epochs, &mut self.map) else {
                    // A refusal that set a block aside is news.
                    return (before != self.pool.leaves()).then_some(());
                };
                let frame = usize::try_from(frame.raw()).ok()?;
                self.leaked |= self.data[frame].is_some() || self.map.junk[frame];
                self.data[frame] = Some(owner);
                for (table, foreign) in self.tables.iter_mut().zip(FOREIGN) {
                    *table |= if foreign == owner { bit(frame) } else { 0 };
                }
            }
            Action::Free(frame, owner) => {
                // Unmapped first.
                for (table, foreign) in self.tables.iter_mut().zip(FOREIGN) {
                    *table &= if foreign == owner { !bit(frame) } else { !0 };
                }
                self.pool.free(hfn(frame), owner, &epochs, &mut self.map).ok()?;
            }
            Action::OpenWindow(cpu, frame) => {
                self.pool.open_window(hfn(frame)).ok()?;
                self.windows[cpu] = Some(frame);
            }
            Action::CloseWindow(cpu) => {
                self.pool.close_window(hfn(self.windows[cpu]?)).ok()?;
                self.windows[cpu] = None;
            }
            Action::Request => self.requested = epochs.request(),
            Action::Flush(cpu) => {
                let request = epochs.due(cpu)?.request();
                self.flush(cpu, request);
            }
            Action::Acknowledge(cpu) => {
                let begun = self.begun[cpu].take()?;
                self.served[cpu] = match fault {
                    Fault::Late => self.requested,
                    _ => begun,
                };
            }
            Action::Leave(cpu) => {
                self.presence[cpu] = Presence::Away(epochs.place(cpu)?.leave());
                self.served[cpu] = epochs.served(cpu);
            }
            Action::Appear(cpu) => {
                let (last, due) = match self.presence[cpu] {
                    Presence::Away(last) => (last, None),
                    Presence::Looked(last, due) => (last, due),
                    Presence::Here | Presence::Back => return None,
                };
                epochs.place(cpu)?.appear(last);
                self.served[cpu] = epochs.served(cpu);
                let is_done = matches!(fault, Fault::LooksFirst | Fault::NeverLooks);
                self.presence[cpu] = if is_done { Presence::Here } else { Presence::Back };
                due.into_iter().for_each(|request| self.flush(cpu, request));
            }
            Action::Look(cpu) => match self.presence[cpu] {
                Presence::Away(last) => {
                    let due = (last < self.requested).then_some(self.requested);
                    self.presence[cpu] = Presence::Looked(last, due);
                }
                _ => {
                    self.presence[cpu] = Presence::Here;
                    let due = epochs.due(cpu).map(|due| due.request());
                    due.into_iter().for_each(|request| self.flush(cpu, request));
                }
            },
            Action::Reclaim => {
                let data = &mut self.data;
                let count = self.pool.reclaim(&epochs, u32::MAX, |frame| {
                    data[usize::try_from(frame.raw()).unwrap()] = None;
                });
                return (count > 0).then_some(()).inspect(|()| self.walk());
            }
            Action::BringBack => {
                let count = self.pool.bring_back(0, &mut self.map).ok()?;
                return (count > 0).then_some(()).inspect(|()| self.walk());
            }
        }
        self.walk();
        Some(())
    }

    fn flush(&mut self, cpu: usize, request: u64) {
        self.begun[cpu] = Some(request);
        self.direct[cpu] = 0;
        self.reach[cpu] = [0; 2];
    }

    /// The CPUs remember all there is.
    fn walk(&mut self) {
        let present = self.present();
        for (direct, reach) in self.direct.iter_mut().zip(&mut self.reach) {
            *direct |= present;
            reach.iter_mut().zip(self.tables).for_each(|(reach, table)| *reach |= table);
        }
    }

    /// What an audit of all tables, and windows, finds.
    fn audit(&self) -> Result<(), Finding> {
        let uses = Records(&self.pool);
        let mut audit = Audit::new(&uses);
        let mut map = |space, set: Set, user| {
            for frame in (0..FRAMES).filter(|frame| set & bit(*frame) != 0) {
                let frames = FrameRange::with_count(hfn(frame), 1);
                let (page, size) = (frame as u64, 1);
                let leaf = AuditedLeaf { page, frames, size, write: true, execute: false, user };
                audit.leaf(space, leaf);
            }
        };
        map(Space::Hv, self.present(), false);
        map(Space::SecondStage(1), self.tables[0], true);
        map(Space::Task(1), self.tables[1], true);
        for (window, cpu) in self.windows.iter().zip(0..) {
            map(Space::Window(cpu), window.map_or(0, bit), false);
        }
        audit.outcome()
    }

    fn is_harmed(&self) -> bool {
        let is_bad = |frame: usize| {
            let state = self.pool.state(hfn(frame)).unwrap();
            let is_free_with_data = state == FrameState::Free && self.data[frame].is_some();
            let is_foreign = |owner: Owner| owner != Owner::Hv;
            let has_foreign_data = self.data[frame].is_some_and(is_foreign);
            let here = (0..CPUS).filter(|cpu| self.presence[*cpu] == Presence::Here);
            let in_direct_map = here.clone().any(|cpu| self.direct[cpu] & bit(frame) != 0);
            let in_reach_of_other = (0..2).any(|owner| {
                let reached = here.clone().any(|cpu| self.reach[cpu][owner] & bit(frame) != 0);
                let may =
                    [FrameState::Owned(FOREIGN[owner]), FrameState::Quarantined].contains(&state);
                reached && !may
            });
            let window = self.windows.contains(&Some(frame)) && state != FrameState::Owned(VM);
            let lost = state == FrameState::Owned(Owner::Hv) && self.present() & bit(frame) == 0;
            is_free_with_data
                || in_direct_map && has_foreign_data
                || in_reach_of_other
                || window
                || lost
                || self.map.misused
        };
        self.leaked || (0..FRAMES).any(is_bad)
    }
}

/// What CPUs do wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// They acknowledge what was requested after their flush.
    Late,
    /// When they come back, they look for requests before they show themselves.
    LooksFirst,
    /// They come back without looking.
    NeverLooks,
}

#[derive(Clone)]
struct Protocol<R> {
    fault: Fault,
    rules: PhantomData<R>,
}

impl<R: Rules + Clone + core::fmt::Debug + Eq + Hash + 'static> Model for Protocol<R> {
    type State = Machine<R>;
    type Action = Action;

    fn init_states(&self) -> Vec<Machine<R>> {
        vec![Machine::new()]
    }

    fn actions(&self, machine: &Machine<R>, actions: &mut Vec<Action>) {
        for owner in [Owner::Hv, VM, SECRET] {
            actions.push(Action::Allocate(owner));
            actions.extend((0..FRAMES).map(|frame| Action::Free(frame, owner)));
        }
        for cpu in 0..CPUS {
            match machine.windows[cpu] {
                // The CPUs are alike: one that opens windows will do.
                None if cpu == 0 => {
                    actions.extend((0..FRAMES).map(|frame| Action::OpenWindow(cpu, frame)));
                }
                None => {}
                Some(_) => actions.push(Action::CloseWindow(cpu)),
            }
            match (machine.presence[cpu], machine.begun[cpu]) {
                (Presence::Here, Some(_)) => actions.push(Action::Acknowledge(cpu)),
                // One CPU that goes away will do, and it is not the one with the windows.
                (Presence::Here, None) if cpu == 0 => actions.push(Action::Flush(cpu)),
                (Presence::Here, None) => actions.extend([Action::Flush(cpu), Action::Leave(cpu)]),
                (Presence::Away(_), _) if self.fault == Fault::LooksFirst => {
                    actions.push(Action::Look(cpu));
                }
                (Presence::Away(_) | Presence::Looked(..), _) => actions.push(Action::Appear(cpu)),
                (Presence::Back, _) => actions.push(Action::Look(cpu)),
            }
        }
        if machine.requested < REQUESTS {
            actions.push(Action::Request);
        }
        actions.extend([Action::Reclaim, Action::BringBack]);
    }

    fn next_state(&self, machine: &Machine<R>, action: Action) -> Option<Machine<R>> {
        let mut next = machine.clone();
        next.act(action, self.fault)?;
        // Counters that only grow would make the states endless.
        next.map.allowance = u64::MAX;
        next.pool.leaves.splits = next.pool.leaves.splits.min(1);
        next.pool.leaves.collapses = next.pool.leaves.collapses.min(1);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no harm", |_, machine: &Machine<R>| !machine.is_harmed()),
            Property::always("no finding", |_, machine: &Machine<R>| machine.audit().is_ok()),
            Property::sometimes("a stray", |_, m: &Machine<R>| m.pool.leaves().small > 0),
            Property::sometimes("a split", |_, m: &Machine<R>| m.pool.leaves().splits > 0),
            Property::sometimes("a collapse", |_, m: &Machine<R>| m.pool.leaves().collapses > 0),
            Property::sometimes("a window", |_, m: &Machine<R>| m.windows[0].is_some()),
            Property::sometimes(
                "a CPU that has to flush when it comes back",
                |_, m: &Machine<R>| m.presence[1] == Presence::Back && m.served[1] < m.requested,
            ),
            Property::sometimes("both foreign owners", |_, m: &Machine<R>| {
                m.tables.iter().all(|table| *table != 0)
            }),
        ]
    }
}

/// Whether a property fails under a set of rules.
fn fails<R: Rules + Clone + core::fmt::Debug + Eq + Hash + Send + Sync + 'static>(
    property: &'static str,
    fault: Fault,
) -> bool {
    let protocol = Protocol::<R> { fault, rules: PhantomData };
    let only = stateright::HasDiscoveries::AnyOf([property].into());
    let checker = protocol.checker().threads(2).finish_when(only).spawn_bfs().join();
    checker.discovery(property).is_some()
}

#[test]
fn no_interleaving_does_harm() {
    let protocol = Protocol::<Enforced> { fault: Fault::None, rules: PhantomData };
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    std::println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn a_late_acknowledgement_does_harm() {
    assert!(fails::<Enforced>("no harm", Fault::Late));
}

#[test]
fn a_cpu_that_comes_back_must_look_for_requests() {
    assert!(fails::<Enforced>("no harm", Fault::NeverLooks));
}

#[test]
fn a_cpu_that_comes_back_must_show_itself_before_it_looks() {
    assert!(fails::<Enforced>("no harm", Fault::LooksFirst));
}

macro_rules! each_rule_is_needed {
    ($($test:ident $rule:ident $($finding:literal)?;)*) => {$(
        #[test]
        fn $test() {
            #[derive(Clone, Debug, PartialEq, Eq, Hash)]
            enum Broken {}
            impl Sealed for Broken {}
            impl Rules for Broken {
                const $rule: bool = false;
            }
            assert!(fails::<Broken>("no harm", Fault::None));
            $(assert!(fails::<Broken>($finding, Fault::None));)?
        }
    )*};
}

// Where the harm is in a table, and not in a TLB or in a frame's data, the audit finds it.
each_rule_is_needed! {
    without_quarantine_harm_comes QUARANTINE;
    an_earlier_flush_does_not_do LATER_FLUSH;
    without_zeroing_harm_comes ZERO;
    fresh_blocks_must_be_zeroed ZERO_FRESH;
    others_must_not_free OWNER_FREES "no finding";
    windows_must_pin WINDOW_PINS "no finding";
    windows_must_not_open_on_secrets WINDOW_KINDS "no finding";
    blocks_set_aside_must_be_unmapped SET_ASIDE_UNMAPS "no finding";
    blocks_set_aside_must_be_forgotten LEAVE_QUARANTINE;
    strays_must_be_unmapped STRAY_UNMAPS "no finding";
    only_whole_blocks_return WHOLE_RETURNS "no finding";
}
