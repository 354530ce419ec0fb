//! End-to-end tests of Heki's hypercalls, in a guest that makes them.

use crate::boot::Report;
use crate::build::On;
use crate::e2e::{Case, Place, case, protected, quietly};
use crate::packages::Flavour::Cloud;
use abi::event::Verdict;
use abi::event::ViolationKind::{
    self, ControlRegister, DescriptorTable, Execute, Msr, Read, WriteRodata, WriteText,
};
use abi::policy::{HekiExec, Policy};
use anyhow::{Context, bail, ensure};
use integrity::state::{Page, PageState};
use protection::record;
use ravelin::machine::{Machine, Protection};
use serde::Deserialize;
use std::iter::repeat_n;
use std::time::Duration;
use x86_defs::{cr0, cr4};

/// What the guest's module says of one case.
#[derive(Deserialize)]
struct Outcome {
    name: String,
    result: String,
    detail: String,
}

/// What a call by user code was answered.
#[derive(Deserialize)]
struct User {
    answer: Option<i64>,
}

/// A case of the guest's module.
struct Heki {
    name: &'static str,
    /// What is attacked is protected by the lock as well, without any request.
    by_lock: bool,
    /// The violations that it leaves where it is refused.
    kinds: &'static [ViolationKind],
    /// More of them where pages can be executed and not read.
    reads: usize,
}

const fn asked(name: &'static str, kinds: &'static [ViolationKind]) -> Heki {
    Heki { name, by_lock: false, kinds, reads: 0 }
}

const fn locked(name: &'static str, kinds: &'static [ViolationKind]) -> Heki {
    Heki { by_lock: true, ..asked(name, kinds) }
}

const fn read(name: &'static str, reads: usize) -> Heki {
    Heki { reads, ..asked(name, &[]) }
}

/// Every case, in order.
const CASES: [Heki; 37] = [
    asked("discovery", &[]),
    asked("version", &[]),
    // The RFC's own four.
    asked("cr-disable-smep", &[ControlRegister]),
    asked("write-to-const", &[WriteRodata]),
    asked("write-to-ro-after-init", &[WriteRodata]),
    asked("exec", &[Execute]),
    asked("pin-by-request", &[ControlRegister; 2]),
    asked("bad-pins", &[]),
    asked("remove", &[WriteRodata]),
    asked("all-or-nothing", &[]),
    asked("bad-lists", &[]),
    asked("own-list", &[WriteRodata]),
    asked("lock-not-widened", &[]),
    // Its successor's suite, with cr-disable-smep, write-to-const and exec of above; mixed-write is
    // of the third version.
    asked("cr-disable-wp", &[ControlRegister]),
    locked("mixed-write", &[ControlRegister]),
    locked("idtr", &[DescriptorTable]),
    locked("gdtr", &[DescriptorTable]),
    locked("ldtr", &[DescriptorTable]),
    locked("tr", &[DescriptorTable]),
    locked("lstar", &[Msr]),
    locked("star", &[Msr]),
    locked("cstar", &[Msr]),
    locked("efer", &[Msr]),
    locked("apic-base", &[Msr]),
    locked("sysenter-cs", &[Msr]),
    locked("sysenter-eip", &[Msr]),
    locked("sysenter-esp", &[Msr]),
    locked("sfmask", &[Msr]),
    // Confused deputies.
    asked("store-by-deputy", &[WriteRodata; 6]),
    asked("crossing-store", &[WriteRodata; 2]),
    asked("lists-elsewhere", &[]),
    asked("list-over-itself", &[WriteRodata]),
    asked("secret-pages", &[]),
    // READ withheld.
    read("execute-only", 2),
    read("execute-only-text", 2),
    read("read-by-deputy", 1),
    // And any number of writes to pages that are data, or code on the guest's word.
    asked("random", &[]),
];

/// Protected whether the interface is there or not: the lock pins SMEP by itself, but the request
/// goes unanswered.
const NOT_ANNOUNCED: &str = "answer -1000";
const BARE: &str = "undefined instruction";

/// Random requests per CPU of the long test, which has four.
const MANY: u32 = 250_000;

/// All tests of this file; `full`: a million random requests as well.
pub fn cases(full: bool) -> Vec<Case> {
    let mut cases = vec![
        case("heki-bare", |name, place| {
            let machine = place.built.machine(place.on, Cloud, "heki", Protection::Bare)?;
            open(name, &machine, BARE, None)
        }),
        case("heki-not-announced", |name, place| {
            let machine = protected(place, Cloud, "heki", Policy::default())?;
            open(name, &machine, NOT_ANNOUNCED, Some(-1000))
        }),
    ];
    for exec in [HekiExec::Verify, HekiExec::Trust] {
        let name = format!("heki-{exec:?}").to_lowercase();
        cases.push(case(name, move |name, place| kept(name, place, exec, "heki")));
    }
    if full {
        let job = format!("heki:{MANY}");
        let run = move |name: &str, place: &Place<'_>| kept(name, place, HekiExec::Verify, &job);
        cases.push(Case { on: &[On::Qemu], ..case("heki-million", run) });
    }
    cases
}

/// The hypercalls are not there; what the lock protects by itself is protected if there is one,
/// which answers `user`.
fn open(name: &str, machine: &Machine, version: &str, user: Option<i64>) -> anyhow::Result<()> {
    let report = quietly(name, machine)?;
    report.finished()?;
    let outcomes: Vec<Outcome> = report.all("heki")?;
    ensure!(outcomes.len() == CASES.len(), "{} cases ran", outcomes.len());
    for (outcome, case) in outcomes.iter().zip(&CASES) {
        let expected = if user.is_some() && case.by_lock { "protected" } else { "open" };
        ensure!(outcome.result == expected, "{}: {}", outcome.name, outcome.detail);
        let said = outcome.name != "version" || outcome.detail == version;
        ensure!(said, "the version call: {}", outcome.detail);
    }
    let answers = report.all::<User>("heki-user")?;
    ensure!(answers.iter().map(|user| user.answer).eq([user]), "user code was answered otherwise");
    Ok(())
}

/// Everything that is asked for is kept, and everything that is refused leaves its event.
fn kept(name: &str, place: &Place<'_>, heki_exec: HekiExec, job: &str) -> anyhow::Result<()> {
    let policy = Policy { announce: true, heki_exec, ..Policy::default() };
    let cpus = if place.on == On::Qemu { 4 } else { 2 };
    let timeout = Some(Duration::from_secs(900));
    let machine = Machine { cpus, timeout, ..protected(place, Cloud, job, policy)? };
    let report = quietly(name, &machine)?;
    report.finished()?;
    let outcomes: Vec<Outcome> = report.all("heki")?;
    for outcome in &outcomes {
        ensure!(outcome.result == "protected", "{}: {}", outcome.name, outcome.detail);
    }
    let names = outcomes.iter().map(|outcome| outcome.name.as_str());
    ensure!(names.eq(CASES.map(|case| case.name)), "other cases ran than are known");
    let answers = report.all::<User>("heki-user")?;
    ensure!(answers.iter().map(|user| user.answer).eq([Some(-1)]), "user code was not refused");
    let violations = report.violations();
    let kinds: Vec<u8> = violations.iter().map(|(_, violation)| violation.kind).collect();
    let expected = CASES.iter().flat_map(|case| {
        let reads = if place.on == On::Bochs { case.reads } else { 0 };
        case.kinds.iter().copied().chain(repeat_n(Read, reads)).map(|kind| kind as u8)
    });
    let random = kinds.strip_prefix(expected.collect::<Vec<u8>>().as_slice());
    let writes = random.is_some_and(|rest| {
        let writes = [WriteRodata as u8, WriteText as u8, Read as u8];
        !rest.is_empty() && rest.iter().all(|kind| writes.contains(kind))
    });
    ensure!(writes, "other violations than expected: {violations:x?}");
    let denied = |verdict| verdict == Verdict::Deny as u8;
    ensure!(violations.iter().all(|(_, violation)| denied(violation.verdict)), "not all denied");
    saved(&report, cpus)
}

/// What the hypervisor was asked twice for its state.
#[derive(Deserialize)]
struct Saved {
    answers: [Option<i64>; 2],
}

/// The state that it wrote once says what was locked and asked for.
fn saved(report: &Report, cpus: usize) -> anyhow::Result<()> {
    const ALREADY: i64 = -114;
    let asked = report.all::<Saved>("state")?;
    let answered = asked.iter().map(|said| said.answers).eq([[Some(0), Some(ALREADY)]]);
    ensure!(answered, "a request for the state was answered otherwise");
    let states = report.states();
    let [state] = states.as_slice() else { bail!("{} states were written", states.len()) };
    let state = record::Saved::parse(state)?;
    let count = |wanted: fn(Page) -> bool| -> u64 {
        state.runs().filter(|(_, page)| wanted(*page)).map(|(run, _)| run.count()).sum()
    };
    let locks = report.locks();
    let lock = locks.last().context("nothing was locked")?;
    ensure!(count(|page| page.state == PageState::LockedCode) == lock.text_frames, "other text");
    let rodata = count(|page| page.state == PageState::LockedReadOnly);
    ensure!(rodata == lock.rodata_frames, "other read-only data");
    // Two buffers of two pages, and a function.
    ensure!(count(|page| page.immutable) >= 5, "what was made immutable is not");
    let [zero, four] = state.settings.requested;
    let pinned = zero.must_be_one & cr0::AM != 0 && four.must_be_zero & cr4::PVI != 0;
    ensure!(pinned, "the requested pins are {zero:x?} and {four:x?}");
    ensure!(state.settings.vcpus.iter().flatten().count() == cpus, "pins of other vCPUs");
    Ok(())
}
