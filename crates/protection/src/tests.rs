//! Random states: there and back, damaged, weaker, and stronger; pages against a plain model.

use crate::compare::{Difference, first_weaker_page, page_is_weaker, weaker};
use crate::record::{Damaged, MOST_RUNS, Saved, TooLong, save};
use crate::restore::{Gate, Refusal, Scope, restore};
use crate::{Kernel, Settings};
use abi::MAX_CPUS;
use abi::event::ViolationKind;
use abi::hypercall::SupervisorMode;
use abi::policy::{
    HekiExec, Modules, Patching, Platform, Policy, Reaction, SupervisorExec, Tables,
};
use addr::{FrameRange, Gfn, GuestPhysical};
use integrity::Rights;
use integrity::pins::{ControlPin, MsrPins, Pins, SelectorPin, TablePin};
use integrity::state::{Page, PageState, View};
use proptest::prelude::*;
use std::vec::Vec;

#[derive(Clone, Debug, PartialEq)]
struct Memory(Vec<Page>);

impl Gate for Memory {
    fn page(&self, frame: Gfn) -> Option<Page> {
        self.0.get(usize::try_from(frame.raw()).unwrap()).copied()
    }
    fn is_ram(&self, frame: Gfn) -> bool {
        let owned = |page: Page| matches!(page.state, PageState::Own | PageState::Published);
        self.page(frame).is_some_and(|page| !owned(page))
    }
    fn set(&mut self, run: FrameRange<GuestPhysical>, page: Page) {
        for frame in run.iter() {
            assert!(self.is_ram(frame));
            assert_ne!(self.page(frame), Some(page), "nothing changes");
            self.0[usize::try_from(frame.raw()).unwrap()] = page;
        }
    }
}

fn written(settings: &Settings, pages: &[Page]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let page = |frame: Gfn| pages[usize::try_from(frame.raw()).unwrap()];
    let length = save(settings, page, |piece| bytes.extend_from_slice(piece)).unwrap();
    assert_eq!(length, bytes.len());
    bytes
}

fn control() -> impl Strategy<Value = ControlPin> {
    (any::<u64>(), any::<u64>())
        .prop_map(|(one, zero)| ControlPin { must_be_one: one & !zero, must_be_zero: zero })
}

fn pins() -> impl Strategy<Value = Pins> {
    (control(), control(), control(), any::<[u64; MsrPins::COUNT]>(), any::<[u64; 3]>()).prop_map(
        |(cr0, cr4, efer, msrs, [gdtr, idtr, rest])| {
            let table = |base: u64| TablePin { base, limit: 0xffff };
            let [ldtr, tr] = [0, 16].map(|shift| SelectorPin {
                selector: u16::try_from(rest >> shift & 0xffff).unwrap(),
            });
            let msrs = MsrPins::from_values(msrs);
            Pins { cr0, cr4, efer, msrs, gdtr: table(gdtr), idtr: table(idtr), ldtr, tr }
        },
    )
}

fn policy() -> impl Strategy<Value = Policy> {
    (any::<[bool; 9]>(), 0_usize..3, 0_usize..4, 0_u8..3).prop_map(
        |(flags, exec, reaction, kexec)| {
            let [
                views,
                modules,
                announce,
                jit,
                jump_label,
                static_call,
                ftrace,
                kprobes,
                livepatch,
            ] = flags;
            Policy {
                supervisor_exec: if views { SupervisorExec::Views } else { SupervisorExec::Off },
                modules: if modules { Modules::Unauthenticated } else { Modules::Deny },
                announce,
                patching: Patching { jump_label, static_call, ftrace, kprobes, livepatch },
                jit,
                kexec,
                heki_exec: HekiExec::ALL[exec],
                reactions: [Reaction::ALL[reaction]; ViolationKind::COUNT],
                ..Policy::default()
            }
        },
    )
}

fn page() -> impl Strategy<Value = Page> {
    (0..PageState::ALL.len(), prop_oneof![2 => Just(0_u8), 1 => 0_u8..8], prop::bool::weighted(0.1))
        .prop_map(|(state, bits, immutable)| Page {
            state: PageState::ALL[state],
            withheld: Rights::from_bits_truncate(bits),
            immutable,
        })
}

/// Runs of equal pages.
fn pages() -> impl Strategy<Value = Vec<Page>> {
    prop::collection::vec((page(), 1_usize..6), 1..10).prop_map(|runs| {
        runs.into_iter().flat_map(|(page, count)| std::iter::repeat_n(page, count)).collect()
    })
}

prop_compose! {
    fn settings(frames: u64)(
        policy in policy(),
        stage in 0_u8..3,
        separation in 0_u64..3,
        execute_only: bool,
        kernel_digest: u64,
        place in any::<[u64; 2]>(),
        requested in [control(), control()],
        vcpus in prop::collection::vec(prop::option::of(pins()), 0..4),
    ) -> Settings {
        let mut all = [None; MAX_CPUS];
        all[..vcpus.len()].copy_from_slice(&vcpus);
        Settings {
            policy, stage, execute_only, frames, kernel_digest, requested,
            separation: SupervisorMode::from_number(separation).unwrap(),
            kernel: (stage > 0).then_some(Kernel { gva: place[0], gpa: place[1] }),
            vcpus: all,
        }
    }
}

fn state() -> impl Strategy<Value = (Settings, Vec<Page>)> {
    pages().prop_flat_map(|pages| (settings(pages.len() as u64), Just(pages)))
}

/// Whether `one` allows what `other` does not, as plainly as can be: by each right of each view.
fn wider(one: Page, other: Page) -> bool {
    [View::Kernel, View::User, View::Single].into_iter().any(|view| {
        [Rights::READ, Rights::WRITE, Rights::EXECUTE]
            .into_iter()
            .any(|right| one.allows(view).contains(right) && !other.allows(view).contains(right))
    })
}

proptest! {
    #[test]
    fn what_is_saved_is_read_back((settings, pages) in state()) {
        let bytes = written(&settings, &pages);
        let saved = Saved::parse(&bytes).unwrap();
        prop_assert_eq!(saved.settings, settings);
        let read: Vec<Page> = saved
            .runs()
            .flat_map(|(run, page)| run.iter().map(move |_| page))
            .collect();
        prop_assert_eq!(&read, &pages);
        // Nothing is weaker than itself.
        prop_assert_eq!(weaker(&settings, &settings), None);
        let rewritten = written(&saved.settings, &read);
        prop_assert_eq!(rewritten, bytes);
    }

    #[test]
    fn a_byte_that_is_another_is_found((settings, pages) in state(), flip in 1_u8..) {
        let bytes = written(&settings, &pages);
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= flip;
            prop_assert!(Saved::parse(&bytes).is_err(), "byte {}", at);
        }
    }

    #[test]
    fn what_is_cut_or_too_long_is_found((settings, pages) in state(), more: u8) {
        let mut bytes = written(&settings, &pages);
        for length in 0..bytes.len() {
            prop_assert!(Saved::parse(&bytes[..length]).is_err());
        }
        bytes.push(more);
        prop_assert!(Saved::parse(&bytes).is_err());
    }

    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>, (settings, pages) in state(), at: usize, fix: bool) {
        let _ = Saved::parse(&bytes);
        // With a digest that matches, so that what lies behind it is reached.
        let mut record = written(&settings, &pages);
        let place = at % record.len();
        for (to, from) in record[place..].iter_mut().zip(&bytes) {
            *to = *from;
        }
        if fix {
            let end = record.len() - 8;
            let digest = abi::digest(&record[..end]);
            record[end..].copy_from_slice(&digest.to_le_bytes());
        }
        if let Ok(saved) = Saved::parse(&record) {
            let read: Vec<Page> =
                saved.runs().flat_map(|(run, page)| run.iter().map(move |_| page)).collect();
            prop_assert_eq!(read.len() as u64, saved.settings.frames);
            prop_assert_eq!(written(&saved.settings, &read), record);
        }
    }

    #[test]
    fn what_is_restored_is_nowhere_weaker(
        (now, before) in state(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), page()), 0..4),
        whole: bool,
    ) {
        let mut pages = before.clone();
        for (index, page) in changes {
            let at = index.index(pages.len());
            pages[at] = page;
        }
        let bytes = written(&now, &pages);
        let saved = Saved::parse(&bytes).unwrap();
        let mut memory = Memory(before.clone());
        let scope = if whole { Scope::Whole } else { Scope::Locked };
        let result = restore(&saved, &now, scope, &mut memory);
        let owned = |page: &Page| matches!(page.state, PageState::Own | PageState::Published);
        let expected: Vec<Page> = pages.iter().zip(&before).map(|(one, other)| {
            let free = [PageState::Data, PageState::Code];
            let free = free.contains(&one.state) && free.contains(&other.state);
            let one = if free { Page { state: other.state, ..*one } } else { *one };
            if whole || other.state.is_locked() { one } else { *other }
        }).collect();
        let weaker = expected.iter().zip(&before).any(|(one, other)| {
            (now.stage > 0 && wider(*one, *other))
                || ((owned(one) || owned(other)) && one != other)
                || (other.immutable && !one.immutable)
        });
        let other = |frame: Gfn| before.get(usize::try_from(frame.raw()).unwrap()).copied();
        let strict = first_weaker_page(&saved, other, now.stage > 0);
        match result {
            Ok(changed) => {
                prop_assert!(!weaker);
                let differ = expected.iter().zip(&before).filter(|(one, other)| one != other);
                prop_assert_eq!(changed, differ.count() as u64);
                prop_assert_eq!(memory.0, expected);
            }
            Err(refusal) => {
                prop_assert!(matches!(refusal, Refusal::Page(_) | Refusal::Unsupported(_)));
                prop_assert_eq!(&memory.0, &before);
            }
        }
        // Comparing does not know what will be judged anew.
        let wide = |(one, other): (&Page, &Page)| now.stage > 0 && wider(*one, *other);
        prop_assert!(strict.is_some() || !pages.iter().zip(&before).any(wide));
    }

    #[test]
    fn other_settings_are_restored_only_if_they_hold_as_much(
        (saved, pages) in state(),
        now in state(),
        alike: bool,
    ) {
        let mut now = Settings { frames: saved.frames, ..now.0 };
        if alike {
            let Settings { kernel, kernel_digest, .. } = saved;
            now = Settings { kernel, kernel_digest, stage: saved.stage, ..now };
        }
        let accepted = weaker(&saved, &now).is_none();
        let bit = |pin: ControlPin, value: u64| pin.allows(value);
        if accepted {
            prop_assert!(saved.stage >= now.stage);
            for (one, other) in saved.requested.iter().zip(now.requested) {
                for shift in 0..64 {
                    for value in [1_u64 << shift, !(1 << shift), 0, u64::MAX] {
                        prop_assert!(bit(other, value) || !bit(*one, value));
                    }
                }
            }
            for (one, other) in saved.policy.reactions.iter().zip(now.policy.reactions) {
                prop_assert!(*one == other || other == Reaction::Log || *one == Reaction::Stop
                    || *one == Reaction::Ask && other == Reaction::Deny);
            }
        } else {
            let bytes = written(&saved, &pages);
            let mut memory = Memory(pages.clone());
            let parsed = Saved::parse(&bytes).unwrap();
            prop_assert!(restore(&parsed, &now, Scope::Whole, &mut memory).is_err());
            prop_assert_eq!(memory.0, pages);
        }
    }
}

fn strict() -> Settings {
    let pin = ControlPin { must_be_one: 1 << 16, must_be_zero: 1 << 12 };
    let table = TablePin { base: 1 << 47, limit: 0xfff };
    let pins = Pins {
        cr0: pin,
        cr4: pin,
        efer: pin,
        msrs: MsrPins::from_values([7; MsrPins::COUNT]),
        gdtr: table,
        idtr: table,
        ldtr: SelectorPin { selector: 0 },
        tr: SelectorPin { selector: 64 },
    };
    let mut vcpus = [None; MAX_CPUS];
    vcpus[1] = Some(pins);
    Settings {
        policy: Policy {
            modules: Modules::Deny,
            patching: Patching {
                jump_label: false,
                static_call: false,
                ftrace: false,
                kprobes: false,
                livepatch: false,
            },
            jit: false,
            heki_exec: HekiExec::Deny,
            platform: Platform::Known,
            ..Policy::default()
        },
        stage: 2,
        separation: SupervisorMode::Views,
        execute_only: false,
        frames: 8,
        kernel_digest: 9,
        kernel: Some(Kernel { gva: 1, gpa: 2 }),
        requested: [pin; 2],
        vcpus,
    }
}

#[test]
fn each_thing_that_is_weaker_is_named() {
    let now = strict();
    let free = ControlPin { must_be_one: 1 << 16, must_be_zero: 0 };
    let changed = |change: &dyn Fn(&mut Settings)| {
        let mut settings = now;
        change(&mut settings);
        weaker(&settings, &now)
    };
    let policy = Some(Difference::Policy);
    assert_eq!(changed(&|_| {}), None);
    assert_eq!(changed(&|it| it.frames = 9), Some(Difference::Frames));
    assert_eq!(changed(&|it| it.kernel_digest = 8), Some(Difference::Kernel));
    assert_eq!(changed(&|it| it.kernel = None), Some(Difference::Kernel));
    assert_eq!(changed(&|it| it.stage = 1), Some(Difference::Stage));
    assert_eq!(changed(&|it| it.policy.modules = Modules::Unauthenticated), policy);
    assert_eq!(changed(&|it| it.policy.heki_exec = HekiExec::Verify), policy);
    assert_eq!(changed(&|it| it.policy.jit = true), policy);
    assert_eq!(changed(&|it| it.policy.tables = Tables::Off), policy);
    assert_eq!(changed(&|it| it.policy.tables = Tables::Guard), None);
    assert_eq!(changed(&|it| it.policy.platform = Platform::Any), policy);
    assert_eq!(changed(&|it| it.policy.kexec = 1), policy);
    for allow in [
        (&|it: &mut Patching| it.jump_label = true) as &dyn Fn(&mut Patching),
        &|it| it.static_call = true,
        &|it| it.ftrace = true,
        &|it| it.kprobes = true,
        &|it| it.livepatch = true,
    ] {
        assert_eq!(changed(&|it| allow(&mut it.policy.patching)), policy);
    }
    assert_eq!(changed(&|it| it.policy.supervisor_exec = SupervisorExec::Off), policy);
    assert_eq!(changed(&|it| it.policy.reactions[3] = Reaction::Log), policy);
    assert_eq!(changed(&|it| it.policy.warden.stop_after ^= 1), policy);
    assert_eq!(changed(&|it| it.separation = SupervisorMode::Off), policy);
    assert_eq!(changed(&|it| it.requested[1] = free), Some(Difference::Requested));
    assert_eq!(changed(&|it| it.vcpus[1] = None), Some(Difference::Vcpu(1)));
    let pinned = |change: &dyn Fn(&mut Pins)| {
        changed(&|it| {
            if let Some(pins) = &mut it.vcpus[1] {
                change(pins);
            }
        })
    };
    for change in [
        (&|it: &mut Pins| it.cr4 = ControlPin { must_be_one: 1 << 16, must_be_zero: 0 })
            as &dyn Fn(&mut Pins),
        &|it| it.msrs = MsrPins::from_values([6; MsrPins::COUNT]),
        &|it| it.idtr.base = 0,
        &|it| it.tr.selector = 0,
    ] {
        assert_eq!(pinned(change), Some(Difference::Vcpu(1)));
    }
    // More is no weakness.
    assert_eq!(changed(&|it| it.requested[0].must_be_one |= 1), None);
    assert_eq!(changed(&|it| it.policy.reactions[3] = Reaction::Stop), None);
    assert_eq!(changed(&|it| it.policy.reactions[3] = Reaction::Ask), None);
    assert_eq!(changed(&|it| it.vcpus[2] = it.vcpus[1]), None);
}

#[test]
fn pages_are_compared_as_the_model_does_and_keep_what_was_asked_for() {
    let all = || (0..=u8::MAX).filter_map(|byte| Page::try_from(byte).ok());
    for one in all() {
        for other in all() {
            for locked in [false, true] {
                let weaker = page_is_weaker(one, other, locked);
                assert!(weaker || !locked || !wider(one, other), "{one:?} {other:?}");
                assert!(weaker || one.immutable || !other.immutable);
                assert!(weaker || one.withheld.contains(other.withheld));
                assert!(!weaker || one != other);
            }
        }
    }
}

#[test]
fn a_locked_kernel_is_restored_where_nothing_is_locked_yet() {
    let saved = strict();
    let pages = [
        PageState::Data,
        PageState::Code,
        PageState::LockedCode,
        PageState::LockedReadOnly,
        PageState::Own,
        PageState::Published,
    ]
    .map(Page::new);
    let start = [0, 0, 0, 0, 4, 5].map(|from| pages[from]);
    let saved = Settings { frames: 6, ..saved };
    let now = Settings { stage: 0, kernel: None, vcpus: [None; MAX_CPUS], ..saved };
    let bytes = written(&saved, &pages);
    let parsed = Saved::parse(&bytes).unwrap();
    let mut memory = Memory(start.to_vec());
    assert_eq!(restore(&parsed, &now, Scope::Whole, &mut memory), Ok(2));
    // What is no code stays none.
    let mut expected = pages;
    expected[1] = pages[0];
    assert_eq!(memory.0, expected);
    // Where it is locked, nothing becomes executable.
    let mut memory = Memory(start.to_vec());
    let refused = restore(&parsed, &saved, Scope::Whole, &mut memory);
    assert_eq!(refused, Err(Refusal::Page(Gfn::new(2))));
    assert_eq!(memory.0, start);
    // Nothing that is locked differs.
    assert_eq!(restore(&parsed, &saved, Scope::Locked, &mut memory), Ok(0));
    assert_eq!(memory.0, start);
}

#[test]
fn what_the_machine_cannot_withhold_is_refused() {
    let data = Page::new(PageState::Data);
    let unread = Page { withheld: Rights::READ | Rights::WRITE, ..data };
    let unrun = Page { withheld: Rights::EXECUTE, ..data };
    for (page, execute_only, separation, expected) in [
        (unread, false, SupervisorMode::Mbec, Err(Refusal::Unsupported(Gfn::new(3)))),
        (unread, true, SupervisorMode::Mbec, Ok(1)),
        (unrun, true, SupervisorMode::Off, Err(Refusal::Unsupported(Gfn::new(3)))),
        (unrun, true, SupervisorMode::Views, Ok(1)),
    ] {
        let saved = strict();
        let mut pages = [data; 8];
        pages[3] = page;
        let bytes = written(&saved, &pages);
        let now = Settings { execute_only, separation, ..saved };
        let mut memory = Memory([data; 8].to_vec());
        let parsed = Saved::parse(&bytes).unwrap();
        assert_eq!(restore(&parsed, &now, Scope::Whole, &mut memory), expected);
    }
}

#[test]
fn a_state_in_too_many_pieces_is_not_saved() {
    let frames = MOST_RUNS as u64 + 1;
    let settings = Settings { frames, ..strict() };
    let page = |frame: Gfn| {
        Page::new(if frame.raw().is_multiple_of(2) { PageState::Data } else { PageState::Code })
    };
    let mut pieces = 0;
    assert_eq!(save(&settings, page, |_| pieces += 1), Err(TooLong));
    assert_eq!(pieces, 0);
    let settings = Settings { frames: frames - 1, ..settings };
    let mut bytes = Vec::new();
    save(&settings, page, |piece| bytes.extend_from_slice(piece)).unwrap();
    assert!(bytes.len() <= crate::record::MOST_BYTES);
    assert!(Saved::parse(&bytes).is_ok());
    assert_eq!(Saved::parse(b"RVSTATE").err(), Some(Damaged::NotAState));
}
