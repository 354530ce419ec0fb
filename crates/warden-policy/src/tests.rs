//! Decisions against a model, and what is said about them.

use super::*;
use abi::event::NO_REGISTER;
use abi::policy::SupervisorExec;
use abi::task::MAX_PAYLOAD;
use proptest::prelude::*;
use std::string::{String, ToString};
use std::vec::Vec;

#[derive(Default)]
struct Paper {
    lines: Vec<String>,
}

impl Desk for Paper {
    fn say(&mut self, line: fmt::Arguments<'_>) {
        self.lines.push(line.to_string());
    }
    fn look(&mut self, grant: u32, offset: u64, into: &mut [u8]) -> bool {
        into.fill(0x90);
        grant == 7 && offset + into.len() as u64 <= 4096
    }
}

fn info(warden: policy::Warden, ticks_per_second: u64) -> Info {
    let reactions = [Reaction::Ask; ViolationKind::COUNT];
    let policy = Policy { warden, reactions, ..Policy::default() };
    Info {
        version: Info::VERSION,
        task: 0,
        name: *b"warden\0\0\0\0\0\0\0\0\0\0",
        ticks_per_second,
        quota: 0,
        secret_quota: 0,
        policy: policy.to_record(),
    }
}

fn message(kind: MessageKind, detail: u32, time: u64, payload: &[u8]) -> Message {
    let mut bytes = [0; MAX_PAYLOAD];
    bytes[..payload.len()].copy_from_slice(payload);
    Message {
        kind: kind as u32,
        detail,
        token: 9,
        time,
        grant: 7,
        grant_length: 4096,
        length: payload.len().try_into().unwrap(),
        reserved: 0,
        payload: bytes,
    }
}

fn violation(kind: ViolationKind, rip: u64) -> Violation {
    Violation {
        vm: 0,
        vcpu: 0,
        kind: kind as u8,
        verdict: 1,
        cpl: 0,
        reserved: 0,
        register: NO_REGISTER,
        size: 0,
        rip,
        gva: rip,
        gpa: 0x12_3010,
        old: 0,
        new: 0,
        kernel_base: 0,
    }
}

fn question(kind: ViolationKind, rip: u64, time: u64) -> Message {
    message(MessageKind::Question, 0, time, violation(kind, rip).as_bytes())
}

const WARDEN: policy::Warden =
    policy::Warden { stop_after: 2, within_seconds: 3, heki_configure: true };

#[test]
fn the_third_of_a_kind_stops_the_machine() {
    let mut warden = Warden::new(&info(WARDEN, 10)).unwrap();
    let mut ask = |kind, rip, time| warden.decide(&question(kind, rip, time)).unwrap().verdict;
    assert_eq!(ask(ViolationKind::Msr, 1, 100), Verdict::Deny);
    assert_eq!(ask(ViolationKind::Msr, 2, 110), Verdict::Deny);
    // The first does not count any more.
    assert_eq!(ask(ViolationKind::Msr, 3, 131), Verdict::Deny);
    assert_eq!(ask(ViolationKind::Patch, 4, 131), Verdict::Deny);
    assert_eq!(ask(ViolationKind::Msr, 5, 132), Verdict::Stop);
}

#[test]
fn the_third_from_one_instruction_stops_the_machine() {
    let mut warden = Warden::new(&info(WARDEN, 0)).unwrap();
    let kinds = [ViolationKind::Msr, ViolationKind::Patch, ViolationKind::Execute];
    let mut paper = Paper::default();
    let verdicts: Vec<Verdict> = (0_u64..)
        .zip(kinds)
        .map(|(number, kind)| {
            let message = question(kind, 0xfff, number << 40);
            let decision = warden.decide(&message).unwrap();
            warden.explain(&message, decision, &mut paper);
            decision.verdict
        })
        .collect();
    assert_eq!(verdicts, [Verdict::Deny, Verdict::Deny, Verdict::Stop]);
    assert_eq!(
        paper.lines,
        [
            "denies: msr at RIP 0xfff, 1 of this kind, 1 from there",
            "denies: patch at RIP 0xfff, 1 of this kind, 2 from there",
            "stops the machine: execute at RIP 0xfff, 1 of this kind, 3 from there",
        ]
    );
}

#[test]
fn requests_are_answered_as_the_policy_says() {
    let exit = HekiExit { reason: 1, value: 0x1_0000 };
    for (allowed, verdict, word) in
        [(true, Verdict::Log, "allows"), (false, Verdict::Deny, "denies")]
    {
        let policy = policy::Warden { heki_configure: allowed, ..WARDEN };
        let mut warden = Warden::new(&info(policy, 10)).unwrap();
        let request = message(MessageKind::Heki, 1, 0, exit.as_bytes());
        let decision = warden.decide(&request).unwrap();
        assert_eq!(decision.verdict, verdict);
        let mut paper = Paper::default();
        warden.explain(&request, decision, &mut paper);
        let denial = message(MessageKind::Heki, 0, 0, exit.as_bytes());
        assert_eq!(warden.decide(&denial), None);
        warden.note(&denial, &mut paper);
        assert_eq!(paper.lines[0], std::format!("{word} the guest's request to pin CR0 0x10000"));
        assert_eq!(paper.lines[1], "CR0 0x10000 was denied: bits are pinned");
    }
}

#[test]
fn what_cannot_be_read_is_denied() {
    let mut warden = Warden::new(&info(WARDEN, 10)).unwrap();
    let mut bad = question(ViolationKind::Msr, 0, 0);
    bad.payload[4] = 99;
    let mut long = question(ViolationKind::Msr, 0, 0);
    long.length = u32::MAX;
    for bad in [bad, long, message(MessageKind::Heki, 1, 0, &[1])] {
        assert_eq!(warden.decide(&bad).unwrap().verdict, Verdict::Deny);
    }
    let mut unknown = bad;
    unknown.kind = 77;
    assert_eq!(warden.decide(&unknown), None);
    warden.note(&unknown, &mut Paper::default());
    let mut damaged = info(WARDEN, 10);
    damaged.policy.supervisor_exec = SupervisorExec::Off as u8;
    assert!(Warden::new(&damaged).is_err());
}

#[test]
fn events_are_counted_and_code_is_shown() {
    let mut warden = Warden::new(&info(WARDEN, 10)).unwrap();
    let mut paper = Paper::default();
    let event = |kind| {
        let violation = violation(kind, 5);
        message(MessageKind::Event, RecordKind::Violation as u32, 0, violation.as_bytes())
    };
    for _ in 0..15 {
        warden.note(&event(ViolationKind::Msr), &mut paper);
    }
    warden.note(&event(ViolationKind::Execute), &mut paper);
    assert_eq!(
        paper.lines,
        [
            "code at GPA 0x123010: 90909090909090909090909090909090",
            "16 violations so far: execute 1, msr 15",
        ]
    );
    warden.note(&message(MessageKind::Lost, 3, 0, &[]), &mut paper);
    assert_eq!(paper.lines[2], "3 messages were lost");
}

#[test]
fn a_flood_leaves_few_lines() {
    let warden = policy::Warden { stop_after: 0, ..WARDEN };
    let mut warden = Warden::new(&info(warden, 1)).unwrap();
    let mut paper = Paper::default();
    for number in 0_u64..1000 {
        let message = question(ViolationKind::Msr, number, 1);
        let decision = warden.decide(&message).unwrap();
        assert_eq!(decision.verdict, Verdict::Deny);
        warden.explain(&message, decision, &mut paper);
    }
    assert_eq!(paper.lines.len(), 20);
    warden.note(&message(MessageKind::Lost, 1, 20, &[]), &mut paper);
    assert_eq!(paper.lines[20], "980 lines left out; violations: ");
}

proptest! {
    /// Asked about any violations at any times, it stops at the first that is over the limit, by a
    /// count over everything, and denies all before.
    #[test]
    fn it_stops_exactly_when_the_limit_is_passed(
        stop_after in 0_u32..6, within_seconds in 0_u32..4, ticks_per_second in 0_u64..5,
        questions in prop::collection::vec((0_u64..4, 0_u64..8, 0..ViolationKind::COUNT), 0..120),
    ) {
        let policy = policy::Warden { stop_after, within_seconds, heki_configure: false };
        let mut warden = Warden::new(&info(policy, ticks_per_second)).unwrap();
        let window = match u64::from(within_seconds) * ticks_per_second {
            0 => u64::MAX,
            ticks => ticks,
        };
        let (mut time, mut all) = (0, Vec::new());
        for (step, rip, kind) in questions {
            time += step;
            all.push((time, rip, kind));
            let counting = || all.iter().filter(|(at, ..)| time - at <= window);
            let kinds = counting().filter(|(.., other)| *other == kind).count();
            let rips = counting().filter(|(_, other, _)| *other == rip).count();
            let over = stop_after > 0 && kinds.max(rips) > stop_after as usize;
            let asked = question(ViolationKind::ALL[kind], rip, time);
            let verdict = warden.decide(&asked).unwrap().verdict;
            prop_assert_eq!(verdict, if over { Verdict::Stop } else { Verdict::Deny });
            if over {
                break;
            }
        }
    }

    #[test]
    fn no_message_brings_it_down(words in prop::collection::vec(any::<[u64; 16]>(), 0..40)) {
        let mut warden = Warden::new(&info(WARDEN, 1000)).unwrap();
        let mut paper = Paper::default();
        for mut words in words {
            words[0] %= 1 << 36 | 6;
            words[4] %= 90 << 32;
            let message = Message::read_from_bytes(words.as_bytes()).unwrap();
            match warden.decide(&message) {
                Some(decision) => warden.explain(&message, decision, &mut paper),
                None => warden.note(&message, &mut paper),
            }
        }
    }
}
