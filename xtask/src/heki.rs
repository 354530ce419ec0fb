//! End-to-end tests of Heki's hypercalls, in a guest that makes them.

use crate::build::On;
use crate::e2e::{Case, Place, case, protected, quietly};
use crate::packages::Flavour::Cloud;
use abi::event::{Verdict, ViolationKind};
use abi::policy::{HekiExec, Policy};
use anyhow::ensure;
use ravelin::machine::{Machine, Protection};
use serde::Deserialize;

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

/// Every case, and the violations that it leaves where it is refused.
const CASES: [(&str, &[ViolationKind]); 14] = [
    ("discovery", &[]),
    ("version", &[]),
    ("cr-disable-smep", &[ViolationKind::ControlRegister]),
    ("write-to-const", &[ViolationKind::WriteRodata]),
    ("write-to-ro-after-init", &[ViolationKind::WriteRodata]),
    ("exec", &[ViolationKind::Execute]),
    ("pin-by-request", &[ViolationKind::ControlRegister; 2]),
    ("bad-pins", &[]),
    ("remove", &[ViolationKind::WriteRodata]),
    ("all-or-nothing", &[]),
    ("bad-lists", &[]),
    ("own-list", &[ViolationKind::WriteRodata]),
    ("lock-not-widened", &[]),
    // And any number of writes to pages that are data, or code on the guest's word.
    ("random", &[]),
];

/// Protected whether the interface is there or not: the lock pins SMEP by itself, but the request
/// goes unanswered.
const NOT_ANNOUNCED: &str = "answer -1000";
const BARE: &str = "undefined instruction";

/// All tests of this file.
pub fn cases() -> Vec<Case> {
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
        cases.push(case(name, move |name, place| kept(name, place, exec)));
    }
    cases
}

/// The hypercalls are not there.
fn open(name: &str, machine: &Machine, version: &str, user: Option<i64>) -> anyhow::Result<()> {
    let report = quietly(name, machine)?;
    report.finished()?;
    let outcomes: Vec<Outcome> = report.all("heki")?;
    ensure!(outcomes.len() == CASES.len(), "{} cases ran", outcomes.len());
    for outcome in outcomes {
        ensure!(outcome.result == "open", "{}: {}", outcome.name, outcome.detail);
        let said = outcome.name != "version" || outcome.detail == version;
        ensure!(said, "the version call: {}", outcome.detail);
    }
    let answers = report.all::<User>("heki-user")?;
    ensure!(answers.iter().map(|user| user.answer).eq([user]), "user code was answered otherwise");
    Ok(())
}

/// Everything that is asked for is kept, and everything that is refused leaves its event.
fn kept(name: &str, place: &Place<'_>, heki_exec: HekiExec) -> anyhow::Result<()> {
    let policy = Policy { announce: true, heki_exec, ..Policy::default() };
    let cpus = if place.on == On::Qemu { 4 } else { 2 };
    let machine = Machine { cpus, ..protected(place, Cloud, "heki", policy)? };
    let report = quietly(name, &machine)?;
    report.finished()?;
    let outcomes: Vec<Outcome> = report.all("heki")?;
    for outcome in &outcomes {
        ensure!(outcome.result == "protected", "{}: {}", outcome.name, outcome.detail);
    }
    let names = outcomes.iter().map(|outcome| outcome.name.as_str());
    ensure!(names.eq(CASES.map(|(name, _)| name)), "other cases ran than are known");
    let answers = report.all::<User>("heki-user")?;
    ensure!(answers.iter().map(|user| user.answer).eq([Some(-1)]), "user code was not refused");
    let violations = report.violations();
    let kinds: Vec<u8> = violations.iter().map(|(_, violation)| violation.kind).collect();
    let expected = CASES.iter().flat_map(|(_, kinds)| kinds.iter()).map(|kind| *kind as u8);
    let random = kinds.strip_prefix(expected.collect::<Vec<u8>>().as_slice());
    let writes = random.is_some_and(|rest| {
        let writes = [ViolationKind::WriteRodata as u8, ViolationKind::WriteText as u8];
        !rest.is_empty() && rest.iter().all(|kind| writes.contains(kind))
    });
    ensure!(writes, "other violations than expected: {violations:x?}");
    let denied = |verdict| verdict == Verdict::Deny as u8;
    ensure!(violations.iter().all(|(_, violation)| denied(violation.verdict)), "not all denied");
    Ok(())
}
