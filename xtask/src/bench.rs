//! `cargo xtask bench`: what Ravelin costs.
//!
//! Instructions are counted by the emulator and repeat exactly: the guest's time-stamp counter
//! counts them, in QEMU with `-icount` (one nanosecond of guest time for each) and in Bochs always.
//! Time is measured in QEMU only, in runs of its own without counting, and is only as good as this
//! machine is quiet.

mod memory;

use crate::boot::boot;
use crate::build::{Built, On, build};
use crate::packages::Flavour;
use crate::progress::{Step, step};
use crate::shell::{command, run as run_command};
use abi::policy::{Policy, SupervisorExec};
use anyhow::Context;
use ravelin::machine::Protection;
use ravelin::table::table;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

/// What can be typed after `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// A tenth of the rounds
    #[arg(long)]
    quick: bool,
    /// What emulates the machine
    #[arg(long, value_enum, default_value = "qemu")]
    emulator: On,
    /// Only the hypervisor's memory manager
    #[arg(long)]
    memory: bool,
    /// Only the crates' own benches on this host: page tables, ownership, permission counters
    #[arg(long)]
    host: bool,
    /// Count twice, bare and with everything enforced: the counts must be equal
    #[arg(long)]
    repeat: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Counts by the name of their kind.
type Exits = BTreeMap<String, u64>;

/// What the guest says after a loop.
#[derive(Deserialize)]
struct Loop {
    name: String,
    iterations: u64,
    ticks: u64,
    nanoseconds: u64,
    exits: Option<Exits>,
}

/// What the guest says when its first process starts.
#[derive(Deserialize)]
struct Boot {
    ticks: u64,
    exits: Option<Exits>,
}

/// One phase in one configuration.
#[derive(Clone, Serialize)]
struct Measured {
    phase: String,
    iterations: u64,
    instructions: u64,
    nanoseconds: Option<u64>,
    exits: Exits,
}

/// One phase under Ravelin, compared.
#[derive(Serialize)]
struct Cost {
    phase: String,
    iterations: u64,
    instruction_ratio: f64,
    instruction_goal: Option<f64>,
    time_ratio: Option<f64>,
    exits: Exits,
}

#[derive(Serialize)]
struct Result {
    kernel: String,
    emulator: String,
    bare: Vec<Measured>,
    supervisor_exec_off: Vec<Cost>,
    supervisor_exec_on: Vec<Cost>,
    /// Instructions that an intercepted CPUID takes more than one that is not.
    instructions_per_cpuid_exit: f64,
    instructions_per_cpuid_exit_goal: f64,
    memory: memory::Memory,
}

const CPUID_GOAL: f64 = 200.0;

/// Runs the command.
///
/// # Errors
/// Something is missing, does not build, or does not run to its end.
pub fn run(args: &Args, install: bool) -> anyhow::Result<bool> {
    if args.host {
        return host();
    }
    let on = args.emulator;
    let built = build(&[Flavour::Cloud], &[on], install)?;
    let job = if args.quick { "bench:quick" } else { "bench" };
    if args.memory {
        let memory = memory::measure(&built, on)?;
        if args.json {
            anstream::println!("{}", serde_json::to_string_pretty(&memory)?);
        } else {
            memory.print();
        }
        return Ok(true);
    }
    if args.repeat {
        let bare = repeat(&built, on, job, "bare", &Protection::Bare)?;
        let enforced = repeat(&built, on, job, "enforced", &built.ravelin(Policy::default()))?;
        return Ok(bare && enforced);
    }
    let enforced = Policy::default();
    let off = Policy { supervisor_exec: SupervisorExec::Off, ..enforced };
    let announce = Policy { announce: true, ..off };

    let bare = measure(&built, on, job, "bare", &Protection::Bare)?;
    let supervisor_exec_off = measure(&built, on, job, "supervisor_exec off", &built.ravelin(off))?;
    let supervisor_exec_on =
        measure(&built, on, job, "supervisor_exec on", &built.ravelin(enforced))?;
    let announced =
        counted(&built, on, "bench:quick", "CPUID announced", &built.ravelin(announce))?;
    let memory = memory::measure(&built, on)?;
    let result = Result {
        kernel: built.guest(Flavour::Cloud)?.kernel.release.clone(),
        emulator: on.to_string(),
        supervisor_exec_off: compare(&bare, supervisor_exec_off, |phase| goal(on, false, phase)),
        supervisor_exec_on: compare(&bare, supervisor_exec_on, |phase| goal(on, true, phase)),
        instructions_per_cpuid_exit: per_cpuid(&announced)? - per_cpuid(&bare)?,
        instructions_per_cpuid_exit_goal: CPUID_GOAL,
        memory,
        bare,
    };
    if args.json {
        anstream::println!("{}", serde_json::to_string_pretty(&result)?);
    } else {
        print(&result);
        host()?;
    }
    Ok(true)
}

/// What the crates measure by themselves: page tables against those of the `x86_64` crate, ownership
/// by batches, permission counters against the Heki RFC's.
fn host() -> anyhow::Result<bool> {
    for package in ["paging", "frames", "integrity"] {
        let bench = ["bench", "--quiet", "--package", package];
        let text =
            step(&format!("bench {package}"), || run_command(&mut command("cargo", &bench)))?;
        anstream::println!("{}", text.trim());
    }
    Ok(true)
}

/// The most instructions that a phase may take, as a ratio to the bare machine.
fn goal(on: On, views: bool, phase: &str) -> Option<f64> {
    match (on, views, phase) {
        (_, _, "cpuid") => None,
        // CPUID always exits on Intel, and a C library starts with dozens.
        (On::Bochs, _, "fork-exec-libc") => None,
        // Mode-based execute control needs no second view, so it costs nothing.
        (On::Bochs, _, "boot") => Some(1.01),
        (On::Bochs, _, _) => Some(1.001),
        (On::Qemu, false, "boot") => Some(1.02),
        (On::Qemu, false, _) => Some(1.005),
        (On::Qemu, true, "boot") => Some(1.25),
        (On::Qemu, true, _) => None,
    }
}

/// Counts twice; whether the counts are equal.
fn repeat(
    built: &Built,
    on: On,
    job: &str,
    name: &str,
    protection: &Protection,
) -> anyhow::Result<bool> {
    let first = counted(built, on, job, name, protection)?;
    let second = counted(built, on, job, &format!("{name}, again"), protection)?;
    let mut table = table([name, "rounds", "instructions", "again"]);
    let mut equal = first.len() == second.len();
    for (first, second) in first.iter().zip(&second) {
        equal &= first.instructions == second.instructions;
        table.add_row([
            first.phase.clone(),
            first.iterations.to_string(),
            first.instructions.to_string(),
            second.instructions.to_string(),
        ]);
    }
    anstream::println!("{table}");
    anstream::println!("the two runs are {}", if equal { "equal" } else { "NOT EQUAL" });
    Ok(equal)
}

/// Instructions from one run, times from another.
fn measure(
    built: &Built,
    on: On,
    job: &str,
    name: &str,
    protection: &Protection,
) -> anyhow::Result<Vec<Measured>> {
    let mut phases = counted(built, on, job, name, protection)?;
    if on == On::Bochs {
        return Ok(phases);
    }
    let timed = one_run(built, on, job, name, protection, false)?;
    for (phase, timed) in phases.iter_mut().zip(timed) {
        phase.nanoseconds = timed.nanoseconds;
    }
    Ok(phases)
}

fn counted(
    built: &Built,
    on: On,
    job: &str,
    name: &str,
    protection: &Protection,
) -> anyhow::Result<Vec<Measured>> {
    one_run(built, on, job, name, protection, true)
}

fn one_run(
    built: &Built,
    on: On,
    job: &str,
    name: &str,
    protection: &Protection,
    icount: bool,
) -> anyhow::Result<Vec<Measured>> {
    let what = if icount { "instructions" } else { "time" };
    let step = Step::begin(&format!("measure {what}, {name}"), Some(9));
    let mut machine = built.machine(on, Flavour::Cloud, job, protection.clone())?;
    // Instructions must not depend on where the kernel and its processes happen to be.
    machine.append += " nokaslr norandmaps";
    machine.icount = icount.then_some(0);
    machine.timeout = Some(Duration::from_secs(300));
    let log = format!("bench-{on}-{what}-{}", name.replace(", ", "-").replace(' ', "-"));
    let report = boot(&log, &machine, &mut |word, value| {
        if matches!(word, "boot" | "bench") {
            let phase = value.get("name").and_then(|name| name.as_str());
            step.advance(phase.unwrap_or("boot"));
        }
        ControlFlow::Continue(())
    });
    step.end(report.as_ref().is_ok_and(|report| report.finished().is_ok()));
    let report = report?;
    report.finished()?;
    let boots: Vec<Boot> = report.all("boot")?;
    let boot = boots.into_iter().next().context("the guest did not report its boot")?;
    let at = report.words.iter().find(|word| word.name == "boot").map(|word| word.at);
    let time = |nanoseconds| (!icount).then_some(nanoseconds);
    let boot = Measured {
        phase: "boot".to_owned(),
        iterations: 1,
        instructions: boot.ticks,
        nanoseconds: time(u64::try_from(at.unwrap_or_default().as_nanos())?),
        exits: boot.exits.unwrap_or_default(),
    };
    let loops = report.all("bench")?.into_iter().map(|of: Loop| Measured {
        phase: of.name,
        iterations: of.iterations,
        instructions: of.ticks,
        nanoseconds: time(of.nanoseconds),
        exits: of.exits.unwrap_or_default(),
    });
    Ok([boot].into_iter().chain(loops).collect())
}

fn compare(
    bare: &[Measured],
    phases: Vec<Measured>,
    goal: impl Fn(&str) -> Option<f64>,
) -> Vec<Cost> {
    let pairs = bare.iter().zip(phases);
    let cost = |(bare, phase): (&Measured, Measured)| Cost {
        instruction_ratio: ratio(phase.instructions, bare.instructions),
        instruction_goal: goal(&phase.phase),
        time_ratio: phase.nanoseconds.zip(bare.nanoseconds).map(|(of, to)| ratio(of, to)),
        phase: phase.phase,
        iterations: phase.iterations,
        exits: phase.exits,
    };
    pairs.map(cost).collect()
}

fn per_cpuid(phases: &[Measured]) -> anyhow::Result<f64> {
    let phase = phases.iter().find(|phase| phase.phase == "cpuid");
    let phase = phase.context("the guest did not measure CPUID")?;
    Ok(ratio(phase.instructions, phase.iterations))
}

fn ratio(of: u64, to: u64) -> f64 {
    of as f64 / to as f64
}

fn print(result: &Result) {
    anstream::println!(
        "{} on {}, one CPU, ratios to the bare machine",
        result.kernel,
        result.emulator
    );
    for (name, costs) in [
        ("supervisor_exec off", &result.supervisor_exec_off),
        ("supervisor_exec on", &result.supervisor_exec_on),
    ] {
        let mut table = table([name, "instructions", "goal", "time", "exits"]);
        for cost in costs {
            let goal = cost.instruction_goal.map_or_else(String::new, |goal| {
                let met = if cost.instruction_ratio <= goal { "met" } else { "MISSED" };
                format!("{goal} {met}")
            });
            table.add_row([
                cost.phase.clone(),
                format!("{:.4}", cost.instruction_ratio),
                goal,
                cost.time_ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
                exits(cost),
            ]);
        }
        anstream::println!("{table}");
    }
    let cost = result.instructions_per_cpuid_exit;
    let met = if cost <= CPUID_GOAL { "met" } else { "MISSED" };
    anstream::println!("an intercepted CPUID: {cost:.0} instructions (goal {CPUID_GOAL}: {met})");
    result.memory.print();
}

fn exits(cost: &Cost) -> String {
    let kinds = cost.exits.iter().filter(|(name, count)| *name != "exits" && **count > 0);
    kinds.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}
