//! End-to-end tests: whole machines, each with what must come of it.

use crate::boot::{Report, boot};
use crate::build::{Built, On};
use crate::demo::attack;
use crate::guest_image::module_loader;
use crate::packages::Flavour::{self, Cloud, Generic};
use crate::progress::Step;
use crate::shell::guest_folder;
use crate::test::Tally;
use crate::{
    audit, ending, heki, inside, iso, lives, policies, refusals, requests, restore, ret2dir, tasks,
    trace, userland,
};
use abi::event::LockReport;
use abi::policy::{Policy, SupervisorExec};
use anyhow::{bail, ensure};
use ravelin::machine::{Emulator, Ended, Machine, Protection, interrupted};
use serde::Deserialize;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// One test. Its log is `target/guest/logs/NAME.log`.
pub struct Case {
    /// Its name; with the emulator's behind it, that of its log.
    pub name: String,
    /// The emulators that it runs on.
    pub on: &'static [On],
    /// Fails with what is not as it must be.
    pub run: Box<Test>,
}

/// A test, told its name and where it runs.
type Test = dyn Fn(&str, &Place<'_>) -> anyhow::Result<()>;

/// Where a test runs.
pub struct Place<'a> {
    /// What was built.
    pub built: &'a Built,
    /// What emulates the machine.
    pub on: On,
}

/// The emulators whose CPUs Ravelin runs on.
pub const SUPPORTED: &[On] = &[On::Qemu, On::Bochs];

/// What runs in Bochs every time. It takes several times as long as QEMU: the rest waits for
/// `--full`.
const ALWAYS_IN_BOCHS: &[&str] = &[
    "attacks-1-cpu",
    "attacks-2-cpus",
    "attacks-views-off",
    "bare",
    "boot-cloud-1-cpu-512-mib",
    "boot-cloud-2-cpu-2048-mib",
    "boot-generic-1-cpu-512-mib",
    "early-helper",
    "heki-bare",
    "heki-verify",
    "inside-cloud",
    "no-reboot",
    "policy-log",
    "reboot",
    "refuse-no-virtualization",
    "repeatable",
    "restore",
    "ret2dir-2-cpu",
    "stress-cloud-1-cpu",
    "tasks-checks",
    "tasks-faults-1",
];

/// The emulators for a test with so many CPUs. Bochs runs them by turns, a few instructions each:
/// with more than two, a boot takes minutes.
const fn on_cpus(cpus: usize) -> &'static [On] {
    if cpus > 2 { &[On::Qemu] } else { SUPPORTED }
}

/// A test of this name, on every emulator that is supported.
pub fn case(
    name: impl Into<String>,
    run: impl Fn(&str, &Place<'_>) -> anyhow::Result<()> + 'static,
) -> Case {
    Case { name: name.into(), on: SUPPORTED, run: Box::new(run) }
}

/// Runs every test whose name contains `only`. `full`: the slow ones as well, and a minute of stress
/// on each kernel with 1, 2 and 4 CPUs, where otherwise ten seconds on some must do. `install`:
/// packages that are missing.
///
/// # Errors
/// A signal ended it. Failed tests are counted in `tally`.
pub fn run(
    built: &Built,
    full: bool,
    install: bool,
    only: Option<&str>,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let matrix = Rc::default();
    let logs = guest_folder("logs")?;
    let cases = cases(full)
        .into_iter()
        .chain(policies::cases())
        .chain(lives::cases(full))
        .chain(refusals::cases());
    let cases = cases.chain(ending::cases()).chain(iso::cases()).chain(heki::cases(full));
    let cases =
        cases.chain(ret2dir::cases()).chain(restore::cases(full)).chain(requests::cases(full));
    let cases = cases.chain(inside::cases()).chain(tasks::cases(full));
    let cases = cases.chain(trace::cases()).chain(audit::cases(full, install));
    let cases: Vec<Case> = cases.chain(userland::cases(full, install, &matrix)).collect();
    let runs = cases.iter().flat_map(|case| case.on.iter().map(move |on| (case, *on)));
    for (case, on) in runs {
        let name = format!("{}-{on}", case.name);
        let slow = on == On::Bochs && !ALWAYS_IN_BOCHS.contains(&case.name.as_str());
        if (slow && !full) || !name.contains(only.unwrap_or_default()) {
            continue;
        }
        let step = Step::begin(&name, None);
        let result = (case.run)(&name, &Place { built, on });
        step.end(result.is_ok());
        match result {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                tally.failed += 1;
                anstream::eprintln!("          {error:#}\n          logs: {}", logs.display());
            }
        }
        if interrupted()?.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
    }
    matrix.print();
    Ok(())
}

const MIB: u64 = 1 << 20;

fn cases(full: bool) -> Vec<Case> {
    let mut cases = vec![
        case("attacks-1-cpu", |_, place| all_attacks(place, 1)),
        case("attacks-2-cpus", |_, place| all_attacks(place, 2)),
    ];
    for (flavour, cpus, memory) in [
        (Cloud, 1, 512 * MIB),
        (Cloud, 2, 2048 * MIB),
        (Cloud, 4, 6144 * MIB),
        (Generic, 1, 512 * MIB),
        (Generic, 2, 6144 * MIB),
        (Generic, 4, 1024 * MIB),
    ] {
        let name = format!("boot-{flavour:?}-{cpus}-cpu-{}-mib", memory / MIB).to_lowercase();
        let run = move |name: &str, place: &Place<'_>| boots(name, place, flavour, cpus, memory);
        cases.push(Case { on: on_cpus(cpus), ..case(name, run) });
    }
    let seconds = if full { 60 } else { 10 };
    let stressed = [(Cloud, 1), (Cloud, 4), (Generic, 2), (Cloud, 2), (Generic, 1), (Generic, 4)];
    for (flavour, cpus) in stressed.into_iter().take(if full { 6 } else { 3 }) {
        let name = format!("stress-{flavour:?}-{cpus}-cpu").to_lowercase();
        let run = move |name: &str, place: &Place<'_>| stress(name, place, flavour, cpus, seconds);
        cases.push(Case { on: on_cpus(cpus), ..case(name, run) });
    }
    cases.extend([
        case("early-helper", early_helper),
        // None of Bochs' CPUs that boot Linux has five levels.
        Case { on: &[On::Qemu], ..case("five-levels", five_levels) },
        case("attacks-views-off", attacks_views_off),
        case("reboot", reboots),
        case("no-reboot", stays_down),
        case("bare", bare),
        Case { on: &[On::Bochs], ..case("repeatable", repeatable) },
    ]);
    cases
}

fn all_attacks(place: &Place<'_>, cpus: usize) -> anyhow::Result<()> {
    match attack(place.built, place.on, cpus)?.problem() {
        None => Ok(()),
        Some(problem) => bail!(problem),
    }
}

/// A machine for `job` under Ravelin.
pub fn protected(
    place: &Place<'_>,
    flavour: Flavour,
    job: &str,
    policy: Policy,
) -> anyhow::Result<Machine> {
    place.built.machine(place.on, flavour, job, place.built.ravelin(policy))
}

/// Boots without watching.
pub fn quietly(name: &str, machine: &Machine) -> anyhow::Result<Report> {
    boot(name, machine, &mut |_, _| ControlFlow::Continue(()))
}

/// Checks that nothing was refused or logged.
///
/// # Errors
/// Something was.
pub fn no_violation(report: &Report) -> anyhow::Result<()> {
    let violations = report.violations();
    ensure!(violations.is_empty(), "{} violations: {violations:x?}", violations.len());
    Ok(())
}

/// What the guest says when its first process starts.
#[derive(Deserialize)]
pub struct Boot {
    /// CPUs that it sees.
    pub cpus: usize,
    supervisor_exec: Option<String>,
}

fn boots(
    name: &str,
    place: &Place<'_>,
    flavour: Flavour,
    cpus: usize,
    memory: u64,
) -> anyhow::Result<()> {
    let machine =
        Machine { cpus, memory, ..protected(place, flavour, "poweroff", Policy::default())? };
    boots_well(name, &machine).map(drop)
}

/// Boots a machine whose job is `poweroff`, and checks that all went as it must.
pub fn boots_well(name: &str, machine: &Machine) -> anyhow::Result<Report> {
    let report = quietly(name, machine)?;
    report.finished()?;
    let boots: Vec<Boot> = report.all("boot")?;
    let seen: Vec<usize> = boots.iter().map(|boot| boot.cpus).collect();
    ensure!(seen == [machine.cpus], "CPUs seen by the guest: {seen:?}, given: {}", machine.cpus);
    let mode = if matches!(machine.emulator, Emulator::Qemu) { "views" } else { "mbec" };
    let told = boots.first().and_then(|boot| boot.supervisor_exec.as_deref());
    ensure!(told == Some(mode), "the hypervisor told the guest {told:?}, not {mode}");
    let locks = report.locks();
    let whole = locks.last().is_some_and(|lock| lock.stage == 2);
    ensure!(whole, "text and read-only data were not both locked: {locks:?}");
    let sane = |lock: &LockReport| lock.text_frames > 0 && lock.conflicting_frames == 0;
    ensure!(locks.iter().all(sane), "a lock is not as it must be: {locks:?}");
    no_violation(&report)?;
    Ok(report)
}

/// What the guest says after a stress test.
#[derive(Deserialize)]
struct Stress {
    ok: bool,
    toggles: u64,
    registers: u64,
    states: u64,
    errors: Vec<String>,
}

fn stress(
    name: &str,
    place: &Place<'_>,
    flavour: Flavour,
    cpus: usize,
    seconds: u64,
) -> anyhow::Result<()> {
    let job = format!("stress:{seconds}");
    let machine = Machine { cpus, ..protected(place, flavour, &job, Policy::default())? };
    check_stress(name, machine, seconds)
}

pub fn check_stress(name: &str, mut machine: Machine, seconds: u64) -> anyhow::Result<()> {
    machine.timeout = Some(Duration::from_secs(180 + 12 * seconds));
    if let Emulator::Bochs { .. } = machine.emulator {
        // By its time-stamp counter a second of the guest is as many instructions as the CPU is
        // said to have cycles, which takes Bochs ten of ours and more; this clock is faster.
        machine.append += " clocksource=hpet";
    }
    let report = quietly(name, &machine)?;
    report.finished()?;
    let results: Vec<Stress> = report.all("stress")?;
    let [result] = results.as_slice() else { bail!("{} stress reports", results.len()) };
    ensure!(result.ok, "{}", result.errors.join("; "));
    ensure!(result.toggles > 0, "no static key was toggled");
    let checked = result.registers > 0 && result.states > 0;
    ensure!(checked, "the guest's registers were not checked under load");
    no_violation(&report)
}

/// A user process that the kernel starts before it has made its data read-only: text is locked at
/// once, data follows, and then every attack is refused as ever.
fn early_helper(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let mut machine = protected(place, Cloud, "probe", Policy::default())?;
    let mut archive = std::fs::read(&machine.initrd)?;
    archive.extend(module_loader(&place.built.init)?);
    machine.initrd = guest_folder("initramfs")?.join("early-helper.cpio");
    std::fs::write(&machine.initrd, archive)?;
    let report = quietly(name, &machine)?;
    report.finished()?;
    let stages: Vec<u32> = report.locks().iter().map(|lock| lock.stage).collect();
    ensure!(stages == [1, 2], "the lock went through stages {stages:?}, not 1 and 2");
    probes(&report, |_| "refused")
}

/// A guest with five levels of page tables.
fn five_levels(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let mut machine = protected(place, Cloud, "probe", Policy::default())?;
    machine.cpu = Some("EPYC-v3,+svm,+npt,+umip,+la57".to_owned());
    let report = quietly(name, &machine)?;
    report.finished()?;
    let levels: Vec<u32> = report.locks().iter().map(|lock| lock.levels).collect();
    ensure!(levels == [5], "the lock walked {levels:?} levels, not 5");
    probes(&report, |_| "refused")
}

/// With one view execution is not refused, and everything else is.
fn attacks_views_off(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let policy = Policy { supervisor_exec: SupervisorExec::Off, ..Policy::default() };
    let report = quietly(name, &protected(place, Cloud, "probe", policy)?)?;
    report.finished()?;
    let executes =
        |name: &str| name.starts_with("exec-") || ["module-text-pte", "init-text"].contains(&name);
    probes(&report, |name| if executes(name) { "succeeded" } else { "refused" })
}

/// Compares the result of every probe with what it should be.
///
/// # Errors
/// One has another.
pub fn probes(report: &Report, expected: impl Fn(&str) -> &'static str) -> anyhow::Result<()> {
    let probes: Vec<crate::judge::Probe> = report.all("probe")?;
    ensure!(!probes.is_empty(), "no probe ran");
    for probe in probes {
        let expected = expected(&probe.name);
        ensure!(probe.result == expected, "{}: {} {}", probe.name, probe.result, probe.detail);
    }
    Ok(())
}

fn reboots(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let mut machine = protected(place, Cloud, "reboot", Policy::default())?;
    machine.no_reboot = false;
    machine.cpus = 2;
    if place.on == On::Bochs {
        // Bochs' BIOS does not survive the reset by the keyboard controller, which is Linux's first
        // choice.
        machine.append += " reboot=pci";
    }
    let mut boots = 0;
    let report = boot(name, &machine, &mut |word, _| {
        boots += usize::from(word == "boot");
        if boots == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    ensure!(report.outcome.ended == Ended::Enough, "it ended with {:?}", report.outcome.ended);
    let locks = report.locks().iter().filter(|lock| lock.stage == 2).count();
    ensure!(locks == 2, "booted twice, but locked {locks} times");
    no_violation(&report)
}

fn stays_down(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let report = quietly(name, &protected(place, Cloud, "reboot", Policy::default())?)?;
    ensure!(report.outcome.ended == Ended::Reset, "it ended with {:?}", report.outcome.ended);
    Ok(())
}

/// What every other test compares with: the same guest without Ravelin.
fn bare(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let mut machine = place.built.machine(place.on, Cloud, "poweroff", Protection::Bare)?;
    machine.cpus = 2;
    let report = quietly(name, &machine)?;
    report.finished()?;
    let boots: Vec<Boot> = report.all("boot")?;
    ensure!(boots.iter().map(|boot| boot.cpus).eq([2]), "the guest saw other CPUs than it has");
    Ok(())
}

/// Two runs report the same, time-stamp counters included.
fn repeatable(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let machine = place.built.machine(place.on, Cloud, "bench:quick", Protection::Bare)?;
    let words = || -> anyhow::Result<Vec<(String, serde_json::Value)>> {
        let report = quietly(name, &machine)?;
        report.finished()?;
        Ok(report.words.into_iter().map(|word| (word.name, word.value)).collect())
    };
    let (first, second) = (words()?, words()?);
    let mut pairs = first.iter().zip(&second);
    let other = pairs.find(|(first, second)| first != second);
    ensure!(first.len() == second.len() && other.is_none(), "the runs differ: {other:?}");
    Ok(())
}
