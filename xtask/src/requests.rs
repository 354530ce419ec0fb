//! End-to-end tests of a guest that asks for protection: what it gets against four attacks that the
//! lock alone does not refuse, and what the warden has to say in it.

use crate::boot::Report;
use crate::e2e::{Case, Place, case, protected, quietly};
use crate::packages::Flavour::Cloud;
use crate::tasks::{image, said, with_tasks};
use abi::event::ViolationKind::{self, ControlRegister, Execute, WriteRodata};
use abi::policy::{Policy, Warden};
use anyhow::ensure;
use ravelin::events::Body;
use ravelin::machine::Machine;
use serde::Deserialize;

/// Tests of what the warden answers; `full`: what it does by default, and when it does not.
pub fn cases(full: bool) -> Vec<Case> {
    let mut cases = vec![case("heki-pins-refused", pins_refused)];
    if full {
        cases.push(case("heki-pins-allowed", pins_allowed));
        cases.push(case("heki-pins-unanswered", pins_unanswered));
    }
    cases
}

/// The attacks, each with its event, in the order of the requests against them.
pub const ATTACKS: [(&str, ViolationKind); 4] = [
    ("cr0-am", ControlRegister),
    ("cr4-pvi", ControlRegister),
    ("boot-text", Execute),
    ("low-page", WriteRodata),
];

/// What came of an attack.
#[derive(Deserialize)]
struct Attack {
    when: String,
    name: String,
    result: String,
}

/// The hypercall's answers: to user mode, and to the kernel without its sign.
#[derive(Deserialize, PartialEq, Debug)]
struct Answers {
    user: i64,
    kernel: i64,
}

/// Whether the first `before` of the attacks were refused before the call, which the kernel has made
/// with this answer, and the first `after` of them afterwards, each with its event.
pub fn protects(report: &Report, before: usize, answer: i64, after: usize) -> anyhow::Result<()> {
    report.finished()?;
    let attacks: Vec<Attack> = report.all("restore")?;
    let seen = attacks.iter().map(|it| (it.when.as_str(), it.name.as_str(), it.result.as_str()));
    let expected = [("before", before), ("after", after)].into_iter().flat_map(|(when, most)| {
        ATTACKS.iter().enumerate().map(move |(number, (name, _))| {
            (when, *name, if number < most { "protected" } else { "open" })
        })
    });
    ensure!(seen.clone().eq(expected), "the attacks: {:?}", seen.collect::<Vec<_>>());
    let answers: Vec<Answers> = report.all("restore-answers")?;
    ensure!(answers == [Answers { user: -1, kernel: answer }], "answered with {answers:?}");
    let kinds = report.violations().into_iter().map(|(_, violation)| violation.kind);
    let expected = [before, after].map(|most| ATTACKS.iter().take(most));
    let expected = expected.into_iter().flatten().map(|(_, kind)| *kind as u8);
    ensure!(kinds.eq(expected), "other violations than expected: {:x?}", report.violations());
    Ok(())
}

/// A machine whose kernel asks, under a policy by which the warden allows that or not.
fn asking(place: &Place<'_>, heki_configure: bool) -> anyhow::Result<Machine> {
    let warden = Warden { heki_configure, ..Warden::DEFAULT };
    let policy = Policy { announce: true, warden, ..Policy::default() };
    protected(place, Cloud, "restore:ask", policy)
}

/// The guest gets an error, and nothing is pinned.
fn pins_refused(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let report = quietly(name, &asking(place, false)?)?;
    protects(&report, 0, 1, 0)?;
    let lines = said(&report, "warden");
    let denied = lines.contains(&"denies the guest's request to pin CR0 0x50000");
    ensure!(denied, "the warden says: {lines:?}");
    Ok(())
}

fn pins_allowed(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let report = quietly(name, &asking(place, true)?)?;
    protects(&report, 0, 0, ATTACKS.len())?;
    let lines = said(&report, "warden");
    for pin in ["CR0 0x50000", "CR4 0x2"] {
        let line = format!("allows the guest's request to pin {pin}");
        ensure!(lines.contains(&line.as_str()), "the warden says: {lines:?}");
    }
    Ok(())
}

/// A warden that hears the question and does not answer: bits are pinned, and that is said.
fn pins_unanswered(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let deaf = image(place, "deaf")?;
    // That policy would refuse them.
    let machine = with_tasks(asking(place, false)?, |tasks| tasks.warden = Some(deaf));
    let report = quietly(name, &machine)?;
    protects(&report, 0, 0, ATTACKS.len())?;
    let late = |body: &Body| matches!(body, Body::Log(text) if text.contains("did not answer"));
    let late = report.records.iter().filter(|record| late(&record.body)).count();
    ensure!(late == 2, "two questions, {late} times without an answer");
    Ok(())
}
