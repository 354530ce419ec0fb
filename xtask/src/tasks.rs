//! End-to-end tests of tasks: whatever one does, it is stopped and reported or its call is refused,
//! and the guest boots on. And of the warden: what it decides, and what happens when it does not.

use crate::audit::dump_when_idle;
use crate::boot::Report;
use crate::build::On;
use crate::e2e::{Case, Place, boots_well, case, probes, protected, quietly};
use crate::packages::Flavour::Cloud;
use crate::shell::guest_folder;
use abi::event::{Verdict, ViolationKind};
use abi::policy::{Policy, Reaction, Warden};
use abi::task::{Call, START};
use anyhow::{Context, bail, ensure};
use boot_info::MOST_TASKS;
use dump::Dump;
use ravelin::dump_file::DumpFile;
use ravelin::events::Body;
use ravelin::machine::{Ended, Machine, Protection, Tasks};
use std::path::PathBuf;
use std::time::Duration;

/// What ends a task, by its name, and the exceptions that can: CPUs and emulators differ in some.
/// The first group runs every time.
const ACTS: &[(&str, &[u8])] = &[
    ("null", &[14]),
    ("stack", &[14]),
    ("write-text", &[14]),
    ("run-secret", &[14]),
    ("wrmsr", &[13]),
    ("syscall", &[6]),
    ("trap-flag", &[1]),
    ("wild-call", &[14]),
    ("wild-jump", &[13]),
    ("read-image", &[14]),
    ("read-apic", &[14]),
    ("read-guard", &[14]),
    ("read-past-end", &[14]),
    ("read-high", &[14]),
    ("write-rodata", &[14]),
    ("write-info", &[14]),
    ("run-stack", &[14]),
    ("run-data", &[14]),
    ("run-mapped", &[14]),
    ("cli", &[13]),
    ("sti", &[13]),
    ("hlt", &[13]),
    ("read-cr0", &[13]),
    ("write-cr3", &[13]),
    ("write-dr7", &[13]),
    ("in", &[13]),
    ("out", &[13]),
    ("rdmsr", &[13]),
    ("lgdt", &[13]),
    ("lidt", &[13]),
    ("ltr", &[13]),
    ("invlpg", &[13]),
    ("swapgs", &[13]),
    ("clts", &[13]),
    ("wbinvd", &[13]),
    // Intel knows it, AMD has none in long mode.
    ("sysenter", &[6, 13]),
    ("int-fault", &[13]),
    ("int-nmi", &[13]),
    ("int-timer", &[13]),
    ("int3", &[13]),
    // QEMU reads the stack as CPL 0 does, which SMAP refuses.
    ("far-return", &[13, 14]),
    ("stack-segment", &[13]),
    ("ud2", &[6]),
    ("divide", &[0]),
    ("x87", &[16]),
    ("avx", &[6]),
    ("xsetbv", &[6, 13]),
    ("vmmcall", &[6, 13]),
    ("vmcall", &[6, 13]),
    ("vmrun", &[6, 13]),
    ("vmxoff", &[6, 13]),
];

/// Calls that a task can make for ever, all but those that end it or make it wait.
const BUSY_MEMORY: &[Call] = &[Call::Log, Call::Map, Call::Unmap, Call::Send, Call::GuestRead];
const BUSY_SECRETS: &[Call] =
    &[Call::SecretCreate, Call::SecretMap, Call::SecretUnmap, Call::SecretDestroy];

/// All tests of this file. `full`: each act, and each random call.
pub fn cases(full: bool) -> Vec<Case> {
    let most = if full { usize::MAX } else { 1 };
    let mut cases = vec![case("tasks-checks", checks)];
    for (number, acts) in (1..).zip(ACTS.chunks(MOST_TASKS).take(most)) {
        cases.push(case(format!("tasks-faults-{number}"), |name, place| faults(name, place, acts)));
    }
    cases.push(Case { on: &[On::Qemu], ..case("secret-in-dump", secret_in_dump) });
    cases.push(Case { on: &[On::Qemu], ..case("warden-stops", warden_stops) });
    cases.push(Case { on: &[On::Qemu], ..case("warden-deaf", warden_deaf) });
    for (part, calls) in [("memory", BUSY_MEMORY), ("secrets", BUSY_SECRETS)] {
        let run = |name: &str, place: &Place<'_>| ended_in_calls(name, place, calls);
        cases.push(case(format!("tasks-busy-{part}"), run));
    }
    if full {
        cases.push(case("tasks-endings", endings));
        cases.push(case("tasks-two-cpus", two_cpus));
        cases.push(case("warden-asked", |name, place| denies(name, place, true)));
        cases.push(case("warden-missing", |name, place| denies(name, place, false)));
        for number in 0..5 {
            let names: Vec<String> =
                (0..MOST_TASKS).map(|task| format!("fuzz-{}", 10 * number + task)).collect();
            cases.push(case(format!("tasks-random-{number}"), move |name, place| {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                come_through(name, place, 1, &names)
            }));
        }
    }
    cases
}

/// The image of the test task that does what `act` names.
pub fn image(place: &Place<'_>, act: &str) -> anyhow::Result<PathBuf> {
    let program = std::fs::read(&place.built.unruly).context("the test task was not built")?;
    let path = guest_folder("tasks")?.join(act);
    ravelin::cache::write_atomically(&path, &ravelin::task::convert(&program, act)?)?;
    Ok(path)
}

/// Changes the tasks of a machine.
pub fn with_tasks(mut machine: Machine, change: impl FnOnce(&mut Tasks)) -> Machine {
    if let Protection::Ravelin { tasks, .. } = &mut machine.protection {
        change(tasks);
    }
    machine
}

/// Boots with the test task under these names; all must be well with the guest.
fn run(name: &str, place: &Place<'_>, cpus: usize, acts: &[&str]) -> anyhow::Result<Report> {
    let others = acts.iter().map(|act| image(place, act)).collect::<anyhow::Result<_>>()?;
    let machine = protected(place, Cloud, "poweroff", Policy::default())?;
    // A task that never ends takes Bochs almost a minute.
    let timeout = Some(Duration::from_secs(600));
    let machine = Machine { cpus, timeout, ..machine };
    boots_well(name, &with_tasks(machine, |tasks| tasks.others = others))
}

/// What the tasks of this name have logged, and why they were stopped.
pub fn said<'a>(report: &'a Report, task: &str) -> Vec<&'a str> {
    let mark = format!(" ({task}): ");
    let text = |body: &'a Body| match body {
        Body::Log(text) if text.starts_with("task ") => text.split_once(&mark).map(|it| it.1),
        _ => None,
    };
    report.records.iter().filter_map(|record| text(&record.body)).collect()
}

/// Whether a task was stopped just once, for this reason.
fn stopped(report: &Report, task: &str, reason: &str) -> anyhow::Result<()> {
    let said = said(report, task);
    let reasons: Vec<&&str> = said.iter().filter(|line| line.starts_with("stopped: ")).collect();
    let right =
        matches!(reasons.as_slice(), [only] if only.strip_prefix("stopped: ") == Some(reason));
    ensure!(right, "the task {task} should have been stopped for `{reason}`, but: {said:?}");
    Ok(())
}

/// Every act ends its task by one of the exceptions that it should.
fn faults(name: &str, place: &Place<'_>, acts: &[(&str, &[u8])]) -> anyhow::Result<()> {
    let names: Vec<&str> = acts.iter().map(|(act, _)| *act).collect();
    let report = run(name, place, 1, &names)?;
    for (act, vectors) in acts {
        let said = said(&report, act);
        let fault = said.iter().find_map(|line| line.strip_prefix("stopped: fault "));
        let vector = fault.and_then(|text| text.split(' ').next()?.parse::<u8>().ok());
        let right = vector.is_some_and(|vector| vectors.contains(&vector));
        ensure!(right, "the task {act} should have been stopped by a fault {vectors:?}: {said:?}");
        ensure!(!said.iter().any(|line| line.contains("FAILED")), "{act}: {said:?}");
    }
    Ok(())
}

fn checks(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    come_through(name, place, 1, &["memory", "quota", "secrets", "fuzz-1", "fuzz-2", "fuzz-3"])
}

/// All tasks at once, on two CPUs.
fn two_cpus(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    come_through(name, place, 2, &["memory", "quota", "secrets", "fuzz-1", "fuzz-2", "fuzz-3"])
}

/// All checks of these tasks hold.
fn come_through(name: &str, place: &Place<'_>, cpus: usize, tasks: &[&str]) -> anyhow::Result<()> {
    let report = run(name, place, cpus, tasks)?;
    for task in tasks {
        let said = said(&report, task);
        let wrong: Vec<&&str> = said.iter().filter(|line| line.contains("FAILED")).collect();
        ensure!(wrong.is_empty(), "the task {task}: {wrong:?}");
        let right = said.iter().filter(|line| line.ends_with(": ok")).count();
        ensure!(right > 0 && said.contains(&"done"), "the task {task} did not finish: {said:?}");
        stopped(&report, task, "exited with code 0")?;
    }
    Ok(())
}

/// All that a secret holds is in one block of memory while it lives, and nowhere when it has ended.
fn secret_in_dump(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    const BLOCK: u64 = 2 << 20;
    let held = secret_places(name, place, "hold-secret", "held")?;
    let (Some(first), Some(last)) = (held.iter().min(), held.iter().max()) else {
        bail!("the secret is not in a dump of all memory while it is held");
    };
    ensure!(held.len() as u64 == BLOCK / 4096, "{} pages hold the secret", held.len());
    ensure!(first % BLOCK == 0 && last - first < BLOCK, "it is in more than its block: {held:#x?}");
    let left = secret_places(name, place, "spend-secret", "ended")?;
    ensure!(left.is_empty(), "the secret has ended and is still at {left:#x?}");
    Ok(())
}

/// The pages of the whole machine that hold a part of the secret of the test task under this name.
fn secret_places(name: &str, place: &Place<'_>, act: &str, says: &str) -> anyhow::Result<Vec<u64>> {
    const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut machine = protected(place, Cloud, "idle", Policy::default())?;
    machine.memory = 256 << 20;
    let others = vec![image(place, act)?];
    let machine = with_tasks(machine, |tasks| tasks.others = others);
    let path = guest_folder("logs")?.join(format!("{name}.dump"));
    let report = dump_when_idle(name, machine, false, &path)?;
    let task = said(&report, act);
    ensure!(task.contains(&says), "the task did not get so far: {task:?}");
    // Any four words in a row of what the task writes.
    let wanted = |page: &[u8]| {
        let words: Vec<u64> = page
            .chunks_exact(8)
            .filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)))
            .collect();
        words.windows(4).any(|words| {
            let number = words[0].wrapping_mul(inverse(SEED));
            (1..=BLOCK_WORDS).contains(&number)
                && (1..4)
                    .zip(&words[1..])
                    .all(|(next, word)| *word == number.wrapping_add(next).wrapping_mul(SEED))
        })
    };
    let dump = Dump::open(DumpFile::open(&path)?)?;
    let mut places = Vec::new();
    let mut page = vec![0; 4096];
    for frame in dump.memory.pieces().iter().flat_map(|piece| piece.frames.iter()) {
        dump.read(frame.start(), &mut page).context("the dump is damaged")?;
        if wanted(&page) {
            places.push(frame.start().raw());
        }
    }
    std::fs::remove_file(&path)?;
    Ok(places)
}

/// Words in a secret of 2 MiB.
const BLOCK_WORDS: u64 = (2 << 20) / 8;

/// The number that undoes a multiplication by an odd one, modulo 2^64.
fn inverse(odd: u64) -> u64 {
    // Newton's method doubles the number of right bits; an odd number is right in three.
    (0..5).fold(odd, |x, _| x.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(x))))
}

/// Tasks that end otherwise than by a fault.
fn endings(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let report = run(name, place, 1, &["loop", "exit", "panic", "of-no-use"])?;
    let rip = loop_end(&report, "loop")?;
    ensure!(rip >= START, "the task loop was stopped at {rip:#x}");
    stopped(&report, "exit", "exited with code 7")?;
    stopped(&report, "panic", "exited with code 101")?;
    stopped(&report, "of-no-use", "exited with code 98")
}

/// Where a task was when it had run too long.
fn loop_end(report: &Report, task: &str) -> anyhow::Result<u64> {
    const REASON: &str = "stopped: ran too long without waiting, at RIP 0x";
    let said = said(report, task);
    let ends: Vec<&&str> = said.iter().filter(|line| line.starts_with("stopped: ")).collect();
    let [end] = ends.as_slice() else { bail!("the task {task} did not end once: {said:?}") };
    let rip = end.strip_prefix(REASON).and_then(|rip| u64::from_str_radix(rip, 16).ok());
    rip.with_context(|| format!("the task {task} should have run too long: {said:?}"))
}

/// Tasks that are ended while they make a call. A call is not interrupted: what arrives meanwhile ends
/// the task at the instruction behind. Few come elsewhere, as there is next to nothing between two
/// calls. The audit at the end of the machine finds any frame that such a task has left.
fn ended_in_calls(name: &str, place: &Place<'_>, calls: &[Call]) -> anyhow::Result<()> {
    let names: Vec<String> = calls.iter().map(|call| format!("busy-{}", *call as u64)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let report = run(name, place, 1, &names)?;
    let mut elsewhere = Vec::new();
    for task in &names {
        let rip = loop_end(&report, task)?;
        let said = said(&report, task);
        let mut lines = said.iter();
        let back = lines.find_map(|line| line.strip_prefix("its call comes back to 0x"));
        let back = back.and_then(|address| u64::from_str_radix(address, 16).ok());
        let back = back.with_context(|| format!("the task {task} did not begin: {said:?}"))?;
        if rip != back {
            elsewhere.push(task);
        }
    }
    ensure!(elsewhere.len() * 2 < names.len(), "not ended in their calls: {elsewhere:?}");
    Ok(())
}

/// A policy that leaves everything to the warden.
fn asking(stop_after: u32) -> Policy {
    let reactions = [Reaction::Ask; ViolationKind::COUNT];
    let warden = Warden { stop_after, within_seconds: 0, ..Warden::DEFAULT };
    Policy { reactions, warden, ..Policy::default() }
}

/// Verdicts and kinds of all violations.
fn verdicts(report: &Report) -> Vec<(u8, u8)> {
    report.violations().iter().map(|(_, it)| (it.verdict, it.kind)).collect()
}

/// The third write to text is one too many.
fn warden_stops(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let report = quietly(name, &protected(place, Cloud, "probe", asking(2))?)?;
    ensure!(report.outcome.ended == Ended::Stopped, "it ended with {:?}", report.outcome.ended);
    let verdicts = verdicts(&report);
    let (last, before) = verdicts.split_last().context("there was no violation")?;
    ensure!(last.0 == Verdict::Stop as u8, "the last event does not say stop: {verdicts:?}");
    ensure!(
        before.iter().all(|(verdict, _)| *verdict == Verdict::Deny as u8)
            && before.iter().filter(|(_, kind)| *kind == last.1).count() == 2,
        "two violations of each kind should have been denied: {verdicts:?}"
    );
    let lines = said(&report, "warden");
    let explained = lines.iter().filter(|line| line.starts_with("stops the machine: ")).count();
    ensure!(explained == 1, "the warden does not say why: {lines:?}");
    Ok(())
}

/// A warden that does not answer: what it is asked about is denied.
fn warden_deaf(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let deaf = image(place, "deaf")?;
    let mut policy = Policy::default();
    if let Some(reaction) = policy.reactions.get_mut(ViolationKind::Msr as usize) {
        *reaction = Reaction::Ask;
    }
    let machine = protected(place, Cloud, "probe", policy)?;
    let machine = with_tasks(machine, |tasks| tasks.warden = Some(deaf));
    let report = quietly(name, &machine)?;
    report.finished()?;
    probes(&report, |_| "refused")?;
    let lines = said(&report, "deaf");
    let right = lines.iter().filter(|line| line.ends_with(": ok")).count();
    ensure!(right > 0 && !lines.iter().any(|line| line.contains("FAILED")), "{lines:?}");
    let late = |body: &Body| matches!(body, Body::Log(text) if text.contains("did not answer"));
    let late = report.records.iter().filter(|record| late(&record.body)).count();
    let asked =
        verdicts(&report).iter().filter(|(_, kind)| *kind == ViolationKind::Msr as u8).count();
    ensure!(asked > 0 && late == asked, "{asked} questions, {late} times without an answer");
    Ok(())
}

/// The warden is asked about everything, or is not there: all is denied, and said.
fn denies(name: &str, place: &Place<'_>, there: bool) -> anyhow::Result<()> {
    let machine = protected(place, Cloud, "probe", asking(0))?;
    let machine = with_tasks(machine, |tasks| {
        tasks.warden = tasks.warden.take().filter(|_| there);
    });
    let report = quietly(name, &machine)?;
    report.finished()?;
    probes(&report, |_| "refused")?;
    let verdicts = verdicts(&report);
    let denied = verdicts.iter().all(|(verdict, _)| *verdict == Verdict::Deny as u8);
    ensure!(denied && !verdicts.is_empty(), "not all were denied: {verdicts:?}");
    let lines = said(&report, "warden");
    let decisions = lines.iter().filter(|line| line.starts_with("denies: ")).count();
    ensure!((decisions > 0) == there, "the warden says: {lines:?}");
    Ok(())
}
