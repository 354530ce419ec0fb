//! `cargo xtask demo`: the same attacks on the same kernel, without Ravelin and under it.

use crate::boot::{Report, boot};
use crate::build::{Built, On, build};
use crate::judge::{Probe, Row, judge};
use crate::packages::Flavour;
use crate::probes;
use crate::progress::Step;
use abi::policy::{Patching, Policy};
use anyhow::Context;
use ravelin::machine::{Ended, Protection};
use ravelin::table::table;
use serde::Serialize;
use std::ops::ControlFlow;

/// What can be typed after `demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Number of CPUs; two of the attacks need a second one
    #[arg(long, value_name = "N", default_value = "2", value_parser = ravelin::check::cpus)]
    smp: usize,
    /// What emulates the machines
    #[arg(long, value_enum, default_value = "qemu")]
    emulator: On,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Everything that was seen.
#[derive(Serialize)]
pub struct Demo {
    /// The kernel's release.
    kernel: String,
    /// What emulated the machines.
    emulator: String,
    /// CPUs of the machine.
    cpus: usize,
    /// One row per attack.
    pub attacks: Vec<Row>,
    /// What else is wrong.
    pub problems: Vec<String>,
}

/// Runs the command; whether everything is as it must be.
///
/// # Errors
/// Something is missing, or does not build or boot.
pub fn run(args: &Args, install: bool) -> anyhow::Result<bool> {
    let built = build(&[Flavour::Cloud], &[args.emulator], install)?;
    let demo = attack(&built, args.emulator, args.smp)?;
    if args.json {
        anstream::println!("{}", serde_json::to_string_pretty(&demo)?);
    } else {
        print(&demo);
    }
    Ok(demo.problem().is_none())
}

/// What the default policy allows and a stricter one denies.
fn denying() -> Policy {
    let patching = Patching { kprobes: false, ..Patching::ALL };
    Policy { jit: false, patching, ..Policy::default() }
}

/// Boots the cloud kernel bare, under the default policy and under one that denies what that allows,
/// and attacks it.
///
/// # Errors
/// A machine could not be started, or the guest speaks another language.
pub fn attack(built: &Built, on: On, cpus: usize) -> anyhow::Result<Demo> {
    let guest = built.guest(Flavour::Cloud)?;
    let bare = attack_one(built, on, cpus, Stand::Bare)?;
    let ravelin = attack_one(built, on, cpus, Stand::Default)?;
    let denied = attack_one(built, on, cpus, Stand::Denying)?;
    let (mut attacks, mut problems) = (Vec::new(), Vec::new());
    for (denied, report) in [(false, &ravelin), (true, &denied)] {
        let (bare, under) = (bare.all("probe")?, report.all("probe")?);
        let (rows, strays) = judge(cpus, denied, &bare, &under, &report.violations());
        attacks.extend(rows);
        problems.extend(strays);
    }
    let reports = [("bare", &bare), ("under Ravelin", &ravelin), ("under a policy", &denied)];
    for (name, report) in reports {
        for error in report.all::<serde_json::Value>("error")? {
            problems.push(format!("{name}: {error}"));
        }
        if let Err(error) = report.finished() {
            problems.push(format!("{name}: {error:#}"));
        }
    }
    let kernel = guest.kernel.release.clone();
    Ok(Demo { kernel, emulator: on.to_string(), cpus, attacks, problems })
}

/// How a machine stands up to the attacks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stand {
    Bare,
    Default,
    Denying,
}

fn attack_one(built: &Built, on: On, cpus: usize, stand: Stand) -> anyhow::Result<Report> {
    let guest = built.guest(Flavour::Cloud)?;
    let (name, job, protection) = match stand {
        Stand::Bare => ("bare", "denied+probe", Protection::Bare),
        Stand::Default => ("under-ravelin", "probe", built.ravelin(Policy::default())),
        Stand::Denying => ("denying", "denied", built.ravelin(denying())),
    };
    let attacks = [(Stand::Default, false), (Stand::Denying, true)]
        .into_iter()
        .filter(|(other, _)| stand == Stand::Bare || stand == *other)
        .map(|(_, denied)| probes::expected(cpus, denied))
        .sum::<usize>();
    let plural = if cpus == 1 { "" } else { "s" };
    let label = format!("attack {}, {on}, {cpus} CPU{plural}, {name}", guest.kernel.release);
    let step = Step::begin(&label, u64::try_from(attacks).ok());
    let mut machine = built.machine(on, Flavour::Cloud, job, protection)?;
    machine.cpus = cpus;
    let report = boot(&format!("demo-{on}-{cpus}-{name}"), &machine, &mut |word, value| {
        if word == "probe" {
            let probe: Option<Probe> = serde_json::from_value(value.clone()).ok();
            step.advance(&probe.map(|probe| probe.name).unwrap_or_default());
        }
        ControlFlow::Continue(())
    });
    let good = report.as_ref().is_ok_and(|report| report.outcome.ended == Ended::PowerOff);
    step.end(good);
    report.with_context(|| format!("{label} failed"))
}

impl Demo {
    /// The first thing that is not as it must be.
    pub fn problem(&self) -> Option<String> {
        let row = |row: &Row| row.problem.as_ref().map(|why| format!("{}: {why}", row.name));
        self.attacks.iter().find_map(row).or_else(|| self.problems.first().cloned())
    }
}

fn print(demo: &Demo) {
    let mut table = table(["attack", "bare", "under Ravelin", "event"]);
    for row in &demo.attacks {
        let name = if row.description.is_empty() { &row.name } else { &row.description };
        let mark = if row.problem.is_some() { " (!)" } else { "" };
        let events = row.events.join(", ");
        table.add_row([&format!("{name}{mark}"), &row.bare, &row.ravelin, &events]);
    }
    anstream::println!("{} with {} CPU(s) on {}\n{table}", demo.kernel, demo.cpus, demo.emulator);
    for row in &demo.attacks {
        if let Some(problem) = &row.problem {
            anstream::println!("(!) {}: {problem}", row.name);
        }
    }
    for problem in &demo.problems {
        anstream::println!("(!) {problem}");
    }
    let good = demo.attacks.iter().filter(|row| row.problem.is_none()).count();
    anstream::println!(
        "{good} of {} attacks succeeded on the bare machine, were refused under Ravelin and left \
         exactly one event",
        demo.attacks.len()
    );
}
