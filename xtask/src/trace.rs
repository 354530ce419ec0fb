//! End-to-end tests of the function tracer: a stock kernel's own use of it goes through, and a policy
//! that denies it is kept.

use crate::boot::Report;
use crate::build::On;
use crate::e2e::{Case, Place, case, no_violation, protected, quietly};
use crate::packages::Flavour::{self, Cloud, Generic};
use abi::event::{Verdict, ViolationKind};
use abi::policy::{Patching, Policy};
use anyhow::{bail, ensure};
use serde::Deserialize;
use std::time::Duration;

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (flavour, cpus) in [(Cloud, 1), (Cloud, 2), (Generic, 1)] {
        let name = format!("trace-{flavour:?}-{cpus}-cpu").to_lowercase();
        let run = move |name: &str, place: &Place<'_>| works(name, place, flavour, cpus);
        cases.push(Case { on: &[On::Qemu], ..case(name, run) });
    }
    cases.push(Case { on: &[On::Qemu], ..case("trace-denied", is_denied) });
    cases
}

/// What the guest says of its tracer.
#[derive(Deserialize)]
struct Trace {
    ok: bool,
    all: usize,
    few: usize,
    error: String,
}

fn run(
    name: &str,
    place: &Place<'_>,
    cpus: usize,
    flavour: Flavour,
    policy: Policy,
) -> anyhow::Result<(Report, Trace)> {
    let mut machine = protected(place, flavour, "trace:2", policy)?;
    machine.cpus = cpus;
    machine.timeout = Some(Duration::from_secs(600));
    let report = quietly(name, &machine)?;
    let mut traces: Vec<Trace> = report.all("trace")?;
    match (traces.pop(), traces.is_empty()) {
        (Some(trace), true) => Ok((report, trace)),
        _ => bail!("not one report of the tracer, see {}", report.log.display()),
    }
}

/// All functions, a few, their graph, and a kprobe at an entry; on and off, twice.
fn works(name: &str, place: &Place<'_>, flavour: Flavour, cpus: usize) -> anyhow::Result<()> {
    let (report, trace) = run(name, place, cpus, flavour, Policy::default())?;
    no_violation(&report)?;
    report.finished()?;
    ensure!(trace.ok, "the tracer failed: {}", trace.error);
    ensure!(trace.all > 0 && trace.few > 0, "{} and {} lines traced", trace.all, trace.few);
    Ok(())
}

/// The first write is refused, the kernel kills who asked for it, and the guest lives on.
fn is_denied(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let patching = Patching { ftrace: false, ..Patching::ALL };
    let (report, trace) = run(name, place, 1, Cloud, Policy { patching, ..Policy::default() })?;
    report.finished()?;
    ensure!(!trace.ok, "the tracer worked");
    let violations = report.violations();
    let [(_, violation)] = violations.as_slice() else {
        bail!("{} violations, not one: {violations:x?}", violations.len());
    };
    let as_expected =
        violation.kind == ViolationKind::Patch as u8 && violation.verdict == Verdict::Deny as u8;
    ensure!(as_expected, "another event: {violation:x?}");
    Ok(())
}
