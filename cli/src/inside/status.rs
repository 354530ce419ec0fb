//! `ravelin status`: whether the kernel is locked, how, by which policy, and what that has cost.

use super::{detect, open};
use abi::event::ViolationKind;
use abi::hypercall::{Counter, SupervisorMode};
use hypercall::{Audit, Ravelin};
use published::Snapshot;
use ravelin::policy;
use ravelin::table::table;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// What is known. Everything that is optional is published for root alone.
#[derive(Serialize)]
pub struct Status {
    /// Ravelin's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// "no", "text" or "whole".
    pub locked: &'static str,
    pub supervisor_exec: &'static str,
    /// The chipset whose registers are guarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chipset: Option<String>,
    pub violations: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub violations_by_kind: Option<BTreeMap<&'static str, u64>>,
    pub last_event: u64,
    pub exits: u64,
    pub exits_by_kind: BTreeMap<&'static str, u64>,
    /// As in a policy file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Value>,
    /// What came of an audit of all page tables, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<String>,
    /// Why not everything is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// There is no Ravelin here.
pub fn status(json: bool, audit: bool) -> anyhow::Result<ExitCode> {
    let ravelin = detect()?;
    let outcome = audit.then(|| ravelin.audit());
    let status = Status { audit: outcome.map(told), ..Status::read(ravelin)? };
    if json {
        anstream::println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status);
    }
    let is_bad = status.locked == "no" || outcome == Some(Audit::Failed);
    Ok(if is_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn told(audit: Audit) -> String {
    match audit {
        Audit::Passed { runs } => format!("passed, {runs} runs of leaves"),
        Audit::Failed => "failed: see the event channel".to_owned(),
        Audit::Later => "not made: the last one was too recent, try again in a second".to_owned(),
        Audit::Unknown => "not made: this Ravelin makes none".to_owned(),
    }
}

impl Status {
    /// Asks by hypercalls and, where this process may, reads what is published.
    ///
    /// # Errors
    /// The policy that is published is none.
    pub fn read(ravelin: Ravelin) -> anyhow::Result<Self> {
        let read = |counter| ravelin.read(counter);
        match open(ravelin).and_then(|reader| Ok(reader.snapshot()?)) {
            Ok(page) => Self::of(read, Some(&page)),
            Err(error) => Ok(Self { partial: Some(format!("{error:#}")), ..Self::of(read, None)? }),
        }
    }

    fn of(read: impl Fn(Counter) -> u64, page: Option<&Snapshot>) -> anyhow::Result<Self> {
        let mode = SupervisorMode::from_number(read(Counter::SupervisorMode));
        let kinds = Counter::ALL.into_iter().take_while(|counter| *counter != Counter::LastEvent);
        let by_kind = |page: &Snapshot| {
            ViolationKind::ALL.map(|kind| (kind.name(), page.violations(kind))).into()
        };
        let policy = page.and_then(Snapshot::policy).map(|policy| policy::to_toml(&policy));
        Ok(Self {
            version: page.and_then(|page| page.release().map(str::to_owned)),
            locked: match read(Counter::Locked) {
                0 => "no",
                1 => "text",
                _ => "whole",
            },
            supervisor_exec: mode.map_or("unknown", SupervisorMode::name),
            chipset: page.and_then(|page| page.chipset().map(str::to_owned)),
            violations: read(Counter::Violations),
            violations_by_kind: page.map(by_kind),
            last_event: read(Counter::LastEvent),
            exits: read(Counter::Exits),
            exits_by_kind: kinds
                .filter(|counter| *counter != Counter::Exits)
                .map(|counter| (counter.name(), read(counter)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            policy: policy.map(|text| toml::from_str(&text)).transpose()?,
            audit: None,
            partial: None,
        })
    }
}

fn print(status: &Status) {
    let mut rows = table(["Ravelin", status.version.as_deref().unwrap_or_default()]);
    rows.add_row(["kernel locked", status.locked]);
    rows.add_row(["supervisor_exec", status.supervisor_exec]);
    if let Some(chipset) = &status.chipset {
        rows.add_row(["chipset", chipset]);
    }
    if let Some(audit) = &status.audit {
        rows.add_row(["audit", audit]);
    }
    rows.add_row(["violations", &status.violations.to_string()]);
    for (kind, count) in status.violations_by_kind.iter().flatten().filter(|(_, count)| **count > 0)
    {
        rows.add_row([format!("  {kind}"), count.to_string()]);
    }
    rows.add_row(["latest event", &status.last_event.to_string()]);
    rows.add_row(["exits", &status.exits.to_string()]);
    for (kind, count) in &status.exits_by_kind {
        rows.add_row([format!("  {kind}"), count.to_string()]);
    }
    for (key, value) in status.policy.iter().flat_map(Value::as_object).flatten() {
        add_policy(&mut rows, key, value);
    }
    anstream::println!("{rows}");
    if let Some(reason) = &status.partial {
        anstream::eprintln!("ravelin: without policy and kinds of violation: {reason}");
    }
}

/// A row per key of the policy, the keys of a table indented.
fn add_policy(rows: &mut comfy_table::Table, key: &str, value: &Value) {
    match value {
        Value::Object(table) => {
            rows.add_row([format!("policy: {key}"), String::new()]);
            for (key, value) in table {
                rows.add_row([format!("  {key}"), plain(value)]);
            }
        }
        value => drop(rows.add_row([format!("policy: {key}"), plain(value)])),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
