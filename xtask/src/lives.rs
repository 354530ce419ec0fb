//! End-to-end tests of what begins and ends: modules, the machine by a reset, the kernel by kexec.

use crate::boot::{Report, boot};
use crate::build::{Guest, On};
use crate::e2e::{Boot, Case, Place, case, no_violation, protected, quietly};
use crate::guest_image::successor;
use crate::judge::Probe;
use crate::packages::Flavour::{self, Cloud, Generic};
use crate::probes;
use crate::shell::guest_folder;
use abi::event::{Verdict, ViolationKind};
use abi::policy::Policy;
use anyhow::{bail, ensure};
use ravelin::events::{Body, Record};
use ravelin::machine::{Ended, Machine, Protection};
use serde::Deserialize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The cases.
pub fn cases(full: bool) -> Vec<Case> {
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
        cases.push(case(format!("kexec-named-{cpus}-{plural}"), move |name, place| {
            kexec_named(name, place, cpus, "file", Cloud)
        }));
    }
    cases.push(case("kexec-named-load", |name, place| kexec_named(name, place, 1, "load", Cloud)));
    for (what, job, given) in [
        ("kernel", "kexec:file", (Generic, SUCCESSOR)),
        ("byte", "kexec:changed", (Cloud, SUCCESSOR)),
        ("initrd", "kexec:file", (Cloud, TABLES)),
        ("program", "kexec", (Cloud, SUCCESSOR)),
    ] {
        cases.push(case(format!("kexec-other-{what}"), move |name, place| {
            kexec_other(name, place, job, given)
        }));
    }
    // Bochs' tables lie where the kernel lets no program write.
    let tables = case("kexec-other-tables", |name: &str, place: &Place<'_>| {
        kexec_other(name, place, "kexec:tables", (Cloud, SUCCESSOR))
    });
    cases.push(Case { on: &[On::Qemu], ..tables });
    if full {
        cases.push(case("kexec-named-twice", kexec_twice));
        cases.push(case("kexec-named-generic", |name, place| {
            kexec_named(name, place, 2, "file", Generic)
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

/// The file by which the test program knows that it runs under the second kernel.
const SUCCESSOR: &str = "successor";
/// A file that a kernel takes for a table of its firmware.
const TABLES: &str = "kernel/firmware/acpi/ssdt.aml";

/// A kernel to start, and a file more for it.
type Given<'a> = (Flavour, &'a str);

/// A machine for `job` whose policy names the kernel of one flavour for kexec, and whose guest has
/// a kernel at hand, perhaps of another, to start with the job `probe`, and a file more for it.
fn naming(
    name: &str,
    place: &Place<'_>,
    job: &str,
    named: Flavour,
    given: Given<'_>,
) -> anyhow::Result<Machine> {
    let policy = Policy { kexec: 1, ..Policy::default() };
    let job = format!("{job} ravelin.next=probe");
    let mut machine = protected(place, Cloud, &job, policy)?;
    if let Protection::Ravelin { kexec, .. } = &mut machine.protection {
        kexec.push(place.built.guest(named)?.kernel.image.clone());
    }
    let (given, extra) = (place.built.guest(given.0)?, given.1);
    machine.initrd = with_successor(name, &machine.initrd, &given.initrd, given, extra)?;
    Ok(machine)
}

/// The file system `own` with this kernel in it, and `its` with `extra` for that one.
fn with_successor(
    name: &str,
    own: &Path,
    its: &Path,
    kernel: &Guest,
    extra: &str,
) -> anyhow::Result<PathBuf> {
    let archive = [std::fs::read(own)?, successor(&kernel.kernel.image, its, extra)?].concat();
    let path = guest_folder("initramfs")?.join(format!("{name}.cpio"));
    std::fs::write(&path, archive)?;
    Ok(path)
}

/// One kernel after another takes the place of the one before.
fn kexec_twice(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let cpus = 2;
    let mut machine = naming(name, place, "kexec:file", Cloud, (Cloud, SUCCESSOR))?;
    machine.append = machine.append.replace("next=probe", "next=kexec:file+probe");
    machine.cpus = cpus;
    let guest = place.built.guest(Cloud)?;
    // What was the first one's is the second one's now.
    let second = machine.initrd;
    let name_of_first = format!("{name}-first");
    machine.initrd = with_successor(&name_of_first, &guest.initrd, &second, guest, SUCCESSOR)?;
    let report = quietly(name, &machine)?;
    report.finished()?;
    is_locked_each_time(&report, cpus, 2)
}

/// A kernel that the policy names takes the place of the first one, is locked again, and every
/// attack in it is refused.
fn kexec_named(
    name: &str,
    place: &Place<'_>,
    cpus: usize,
    call: &str,
    flavour: Flavour,
) -> anyhow::Result<()> {
    let mut machine = naming(name, place, &format!("kexec:{call}"), flavour, (flavour, SUCCESSOR))?;
    machine.cpus = cpus;
    let report = quietly(name, &machine)?;
    report.finished()?;
    is_locked_each_time(&report, cpus, 1)
}

/// So many kernels have followed the first, each was locked whole, and all attacks on the last were
/// refused.
fn is_locked_each_time(report: &Report, cpus: usize, times: usize) -> anyhow::Result<()> {
    let boots = report.all::<Boot>("boot")?;
    let seen: Vec<usize> = boots.iter().map(|boot| boot.cpus).collect();
    ensure!(seen == vec![cpus; times + 1], "the kernels saw {seen:?} CPUs, not {cpus} each");
    let stages: Vec<u32> = report.locks().iter().map(|lock| lock.stage).collect();
    ensure!(stages == vec![2; times + 1], "the lock went through stages {stages:?}");
    let follows = |record: &&Record| matches!(record.body, Body::Succession(_));
    let successions = report.records.iter().filter(follows).count();
    ensure!(successions == times, "{successions} kernels followed, not {times}");
    let expected = probes::expected(cpus, false);
    all_refused(report, expected)?;
    let violations = report.violations().len();
    ensure!(violations == expected, "{violations} violations of {expected} attacks");
    Ok(())
}

/// What the policy does not name is refused with an event, and the machine stops before it runs.
fn kexec_other(name: &str, place: &Place<'_>, job: &str, given: Given<'_>) -> anyhow::Result<()> {
    let report = quietly(name, &naming(name, place, job, Cloud, given)?)?;
    ensure!(report.outcome.ended == Ended::Stopped, "it ended with {:?}", report.outcome.ended);
    let loaded = report.count("loaded") + report.count("kexec");
    ensure!(loaded == 1, "nothing was loaded");
    let ran = report.count("kexeced") + report.count("boot");
    ensure!(ran == 1, "what was loaded ran");
    let violations = report.violations();
    let [(_, only)] = &violations[..] else { bail!("{} violations, not one", violations.len()) };
    let as_expected =
        only.kind == ViolationKind::Kexec as u8 && only.verdict == Verdict::Stop as u8;
    ensure!(as_expected, "another event: {only:x?}");
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
