//! What the hypervisor's memory manager costs: a task takes frames, touches them and gives them back,
//! with ownership and in a test build without it; and what becomes of the direct map's large leaves.
//!
//! A task keeps up to 2 MiB that it has unmapped, so that memory which it takes again has not changed
//! hands. What it costs where all of it does is measured in another test build.
//!
//! A tick is an instruction of each CPU, on both emulators with one CPU. With four only Bochs can say
//! so: it gives its CPUs turns of a few instructions each, and a tick is over when all have had
//! theirs, so that waiting for another CPU costs what it costs. QEMU would count the instructions of
//! all CPUs together.

use crate::boot::boot;
use crate::build::{Built, On, Unmapped, build_for_memory};
use crate::packages::Flavour;
use crate::progress::Step;
use anyhow::{Context, ensure};
use ravelin::events::Body;
use ravelin::table::table;
use serde::Serialize;
use std::ops::ControlFlow;
use std::time::Duration;

/// The seed's worst case: what exclusive ownership may cost a program that uses its memory.
const GOAL: f64 = 1.03;
/// How much of a page is touched in such a program.
const ALL: &str = "all";

/// What was measured.
#[derive(Serialize)]
pub struct Memory {
    churn: Vec<Churn>,
    goal: f64,
    /// The direct map when the task had ended, with secret memory, as the hypervisor says.
    direct_map: String,
}

/// Ticks per frame that was mapped for a task, touched, unmapped and given back.
#[derive(Serialize)]
struct Churn {
    cpus: usize,
    /// "word": one word of each page is written. "all": all of it is written and read.
    touched: String,
    /// Frames per call.
    batch: u64,
    owned: f64,
    /// The same where all frames change hands.
    handed: f64,
    unowned: f64,
    ratio: f64,
    ratio_handed: f64,
}

/// What the task says of one loop.
struct Line {
    touched: String,
    batch: u64,
    per_frame: f64,
}

/// Boots with and without ownership, with 1 CPU and, in Bochs, with 4.
///
/// # Errors
/// Something does not build, or does not run to its end.
pub fn measure(built: &Built, on: On) -> anyhow::Result<Memory> {
    build_for_memory()?;
    let mut churn = Vec::new();
    let mut direct_map = String::new();
    let numbers: &[usize] = if on == On::Bochs { &[1, 4] } else { &[1] };
    for cpus in numbers.iter().copied() {
        let (owned, leaves) = one_run(built, on, cpus, Unmapped::Kept)?;
        let (handed, _) = one_run(built, on, cpus, Unmapped::Handed)?;
        let (unowned, _) = one_run(built, on, cpus, Unmapped::Unowned)?;
        let same = owned.len() == unowned.len() && handed.len() == unowned.len();
        ensure!(same, "the task did not measure the same loops each time");
        let rows = owned.into_iter().zip(handed).zip(unowned);
        let rows = rows.map(|((owned, handed), unowned)| Churn {
            cpus,
            touched: owned.touched,
            batch: owned.batch,
            owned: owned.per_frame,
            handed: handed.per_frame,
            unowned: unowned.per_frame,
            ratio: owned.per_frame / unowned.per_frame,
            ratio_handed: handed.per_frame / unowned.per_frame,
        });
        churn.extend(rows);
        direct_map = leaves;
    }
    Ok(Memory { churn, goal: GOAL, direct_map })
}

fn one_run(
    built: &Built,
    on: On,
    cpus: usize,
    unmapped: Unmapped,
) -> anyhow::Result<(Vec<Line>, String)> {
    let name = format!("memory-{on}-{cpus}-{unmapped:?}").to_lowercase();
    let step = Step::begin(&format!("measure {name}"), None);
    let mut machine = built.machine(on, Flavour::Cloud, "poweroff", built.churn(unmapped))?;
    machine.cpus = cpus;
    machine.icount = (on == On::Qemu).then_some(0);
    machine.append += " nokaslr norandmaps";
    machine.timeout = Some(Duration::from_secs(1800));
    let report = boot(&name, &machine, &mut |_, _| ControlFlow::Continue(()));
    step.end(report.is_ok());
    let report = report?;
    let said = report.records.iter().filter_map(|record| match &record.body {
        Body::Log(text) => Some(text.as_str()),
        _ => None,
    });
    let said: Vec<&str> = said.collect();
    let log = report.log.display();
    let lines: Vec<Line> = said.iter().filter_map(|text| line(text)).collect();
    ensure!(
        said.iter().any(|text| text.ends_with("churn done")) && !lines.is_empty(),
        "the task did not finish, see {log}"
    );
    let leaves = said.iter().rev().find_map(|text| text.strip_prefix("direct map: "));
    let leaves = leaves.with_context(|| format!("nothing is said of the direct map, see {log}"))?;
    Ok((lines, leaves.to_owned()))
}

/// `... churn TOUCHED BATCH FRAMES TICKS`.
fn line(text: &str) -> Option<Line> {
    let mut words = text.split_once("): churn ")?.1.split(' ');
    let touched = words.next()?.to_owned();
    let mut number = || words.next()?.parse::<u64>().ok();
    let (batch, frames, ticks) = (number()?, number()?, number()?);
    Some(Line { touched, batch, per_frame: ticks as f64 / frames as f64 })
}

impl Memory {
    /// Shows it as a table.
    pub fn print(&self) {
        let header = [
            "CPUs",
            "touched",
            "batch",
            "owned",
            "all handed on",
            "without",
            "ratio",
            "goal",
            "ratio, handed on",
        ];
        let mut table = table(header);
        for row in &self.churn {
            let goal = if row.touched == ALL {
                let met = if row.ratio <= self.goal { "met" } else { "MISSED" };
                format!("{} {met}", self.goal)
            } else {
                String::new()
            };
            table.add_row([
                row.cpus.to_string(),
                row.touched.clone(),
                row.batch.to_string(),
                format!("{:.0}", row.owned),
                format!("{:.0}", row.handed),
                format!("{:.0}", row.unowned),
                format!("{:.3}", row.ratio),
                goal,
                format!("{:.3}", row.ratio_handed),
            ]);
        }
        anstream::println!(
            "instructions per frame that a task takes, touches and gives back, on its CPU"
        );
        anstream::println!("{table}");
        anstream::println!("the direct map afterwards: {}", self.direct_map);
    }
}
