//! End-to-end tests of what begins and ends: modules, the machine by a reset, the kernel by kexec.

use crate::boot::{Report, boot};
use crate::build::On;
use crate::e2e::{Case, Place, case, no_violation, protected, quietly};
use crate::judge::Probe;
use crate::packages::Flavour::Cloud;
use crate::probes;
use abi::event::{Verdict, ViolationKind};
use abi::policy::Policy;
use anyhow::{bail, ensure};
use ravelin::machine::{Ended, Protection};
use serde::Deserialize;
use std::ops::ControlFlow;

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("kexec-bare", kexec_bare),
        case("kexec-refused", kexec_refused),
        case("reboot-attacks-1-cpu", |name, place| attacked_again(name, place, 1)),
        case("reboot-attacks-2-cpus", |name, place| attacked_again(name, place, 2)),
    ];
    for cpus in [1, 2] {
        let plural = if cpus == 1 { "cpu" } else { "cpus" };
        cases.push(case(format!("kexec-forced-{cpus}-{plural}"), move |name, place| {
            kexec_forced(name, place, cpus)
        }));
        cases.push(case(format!("modules-{cpus}-{plural}"), move |name, place| {
            modules(name, place, cpus)
        }));
    }
    cases
}

/// What the guest says of the two system calls: errors, or 0.
#[derive(Deserialize)]
struct Kexec {
    load: i32,
    file_load: i32,
}

const NOT_PERMITTED: i32 = 1;
const NO_EXECUTABLE: i32 = 8;

fn answers(report: &Report) -> anyhow::Result<(i32, i32)> {
    match &report.all::<Kexec>("kexec")?[..] {
        [kexec] => Ok((kexec.load, kexec.file_load)),
        other => bail!("{} reports of kexec, not one", other.len()),
    }
}

/// Without Ravelin the other program runs.
fn kexec_bare(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let machine = place.built.machine(place.on, Cloud, "kexec", Protection::Bare)?;
    let report = quietly(name, &machine)?;
    let answers = answers(&report)?;
    ensure!(answers == (0, NO_EXECUTABLE), "the system calls answered {answers:?}");
    ensure!(report.count("kexeced") == 1, "the loaded program did not run");
    Ok(())
}

/// Both system calls fail, and the guest lives on.
fn kexec_refused(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let report = quietly(name, &protected(place, Cloud, "kexec", Policy::default())?)?;
    report.finished()?;
    no_violation(&report)?;
    let answers = answers(&report)?;
    ensure!(answers == (NOT_PERMITTED, NOT_PERMITTED), "the system calls answered {answers:?}");
    Ok(())
}

/// Where the kernel was made to load it all the same, it is refused when it leaves.
fn kexec_forced(name: &str, place: &Place<'_>, cpus: usize) -> anyhow::Result<()> {
    let mut machine = protected(place, Cloud, "kexec:force", Policy::default())?;
    machine.cpus = cpus;
    let report = quietly(name, &machine)?;
    let answers = answers(&report)?;
    ensure!(answers == (0, NO_EXECUTABLE), "the system calls answered {answers:?}");
    ensure!(report.count("kexeced") == 0, "the loaded program ran");
    let violations = report.violations();
    let Some((_, first)) = violations.first() else { bail!("no event") };
    let as_expected =
        first.kind == ViolationKind::Kexec as u8 && first.verdict == Verdict::Deny as u8;
    ensure!(as_expected, "another event: {first:x?}");
    ensure!(report.outcome.ended == Ended::Reset, "it ended with {:?}", report.outcome.ended);
    Ok(())
}

/// Every attack is refused before a reset and after it.
fn attacked_again(name: &str, place: &Place<'_>, cpus: usize) -> anyhow::Result<()> {
    let mut machine = protected(place, Cloud, "probe+reboot", Policy::default())?;
    machine.no_reboot = false;
    machine.cpus = cpus;
    if place.on == On::Bochs {
        // As in the other test of a reset.
        machine.append += " reboot=pci";
    }
    let mut done = 0;
    let report = boot(name, &machine, &mut |word, _| {
        done += usize::from(word == "done");
        if done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    ensure!(report.outcome.ended == Ended::Enough, "it ended with {:?}", report.outcome.ended);
    let locks = report.locks().iter().filter(|lock| lock.stage == 2).count();
    ensure!(locks == 2, "booted twice, but locked {locks} times");
    let expected = 2 * probes::expected(cpus, false);
    all_refused(&report, expected)?;
    let violations = report.violations().len();
    ensure!(violations == expected, "{violations} violations of {expected} attacks");
    Ok(())
}

fn all_refused(report: &Report, expected: usize) -> anyhow::Result<()> {
    let probes: Vec<Probe> = report.all("probe")?;
    ensure!(probes.len() == expected, "{} attacks ran, not {expected}", probes.len());
    for probe in probes {
        ensure!(probe.result == "refused", "{}: {} {}", probe.name, probe.result, probe.detail);
    }
    Ok(())
}

/// A module is loaded, attacked and unloaded; no page of it is ever written and executed at once.
fn modules(name: &str, place: &Place<'_>, cpus: usize) -> anyhow::Result<()> {
    const ROUNDS: usize = 5;
    let mut machine = protected(place, Cloud, &format!("modules:{ROUNDS}"), Policy::default())?;
    machine.cpus = cpus;
    let report = quietly(name, &machine)?;
    report.finished()?;
    ensure!(report.count("modules") == 1, "not all rounds were run");
    // Two of the six attacks need a second CPU.
    let expected = ROUNDS * if cpus > 1 { 6 } else { 4 };
    all_refused(&report, expected)?;
    let violations = report.violations();
    ensure!(violations.len() == expected, "{} violations of {expected}", violations.len());
    let kinds = [ViolationKind::Execute as u8, ViolationKind::WriteText as u8];
    let other = violations.iter().find(|(_, violation)| !kinds.contains(&violation.kind));
    ensure!(other.is_none(), "another event: {other:x?}");
    Ok(())
}
