//! `ravelin status`: what the hypervisor under this guest says of itself.

use abi::hypercall::{Counter, SupervisorMode};
use anyhow::Context;
use hypercall::Ravelin;
use ravelin::table::table;
use serde::Serialize;
use std::collections::BTreeMap;
use std::process::ExitCode;

#[derive(Serialize)]
struct Status {
    /// "no", "text" or "whole".
    locked: &'static str,
    supervisor_exec: &'static str,
    violations: u64,
    last_event: u64,
    exits: u64,
    exits_by_kind: BTreeMap<&'static str, u64>,
}

/// Runs the command.
///
/// # Errors
/// There is no Ravelin here.
pub fn status(json: bool) -> anyhow::Result<ExitCode> {
    let ravelin = Ravelin::detect()?
        .context("no Ravelin answers: this machine is not a guest of it (see `ravelin run`)")?;
    let status = read(ravelin);
    if json {
        anstream::println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status);
    }
    Ok(if status.locked == "no" { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn read(ravelin: Ravelin) -> Status {
    let mode = SupervisorMode::from_number(ravelin.read(Counter::SupervisorMode));
    let kinds = Counter::ALL.into_iter().take_while(|counter| *counter != Counter::LastEvent);
    Status {
        locked: match ravelin.read(Counter::Locked) {
            0 => "no",
            1 => "text",
            _ => "whole",
        },
        supervisor_exec: mode.map_or("unknown", SupervisorMode::name),
        violations: ravelin.read(Counter::Violations),
        last_event: ravelin.read(Counter::LastEvent),
        exits: ravelin.read(Counter::Exits),
        exits_by_kind: kinds
            .filter(|counter| *counter != Counter::Exits)
            .map(|counter| (counter.name(), ravelin.read(counter)))
            .filter(|(_, count)| *count > 0)
            .collect(),
    }
}

fn print(status: &Status) {
    let mut rows = table(["Ravelin", ""]);
    rows.add_row(["kernel locked", status.locked]);
    rows.add_row(["supervisor_exec", status.supervisor_exec]);
    rows.add_row(["violations", &status.violations.to_string()]);
    rows.add_row(["latest event", &status.last_event.to_string()]);
    rows.add_row(["exits", &status.exits.to_string()]);
    for (kind, count) in &status.exits_by_kind {
        rows.add_row([format!("  {kind}"), count.to_string()]);
    }
    anstream::println!("{rows}");
}
