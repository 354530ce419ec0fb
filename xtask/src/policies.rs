//! End-to-end tests of policies: what each makes of the same attacks and the same load.

use crate::build::On;
use crate::e2e::{Case, Place, case, check_stress, no_violation, protected, quietly};
use crate::packages::Flavour::Cloud;
use abi::event::{Verdict, ViolationKind};
use abi::policy::{Modules, Patching, Policy, Reaction, SupervisorExec};
use anyhow::{bail, ensure};
use ravelin::events::Body;
use ravelin::machine::Ended;
use serde::Deserialize;

/// Every test of a policy.
pub fn cases() -> Vec<Case> {
    vec![
        case("policy-log", policy_log),
        case("policy-stop", policy_stop),
        // In Bochs the end of this machine has not been seen: it goes on for minutes.
        Case { on: &[On::Qemu], ..case("policy-no-modules", policy_no_modules) },
        case("policy-jit", |name, place| filters(name, place, true)),
        case("policy-no-jit", |name, place| filters(name, place, false)),
        case("policy-views-off", |name, place| {
            let policy = Policy { supervisor_exec: SupervisorExec::Off, ..Policy::default() };
            stress_under(name, place, policy)
        }),
        case("policy-announce", |name, place| {
            stress_under(name, place, Policy { announce: true, ..Policy::default() })
        }),
    ]
}

/// What the guest says of its packet filters.
#[derive(Deserialize)]
struct Filters {
    compiled: bool,
    ran: u64,
}

/// Packet filters work as they must: compiled where the policy allows it, else by the kernel's
/// interpreter.
fn filters(name: &str, place: &Place<'_>, jit: bool) -> anyhow::Result<()> {
    let policy = Policy { jit, ..Policy::default() };
    let report = quietly(name, &protected(place, Cloud, "bpf:3", policy)?)?;
    report.finished()?;
    no_violation(&report)?;
    let [filters] = &report.all::<Filters>("bpf")?[..] else { bail!("not one report of filters") };
    ensure!(filters.compiled == jit, "BPF's compiler is on: {}", filters.compiled);
    ensure!(filters.ran > 0, "no filter ran");
    let promoted = |record: &ravelin::events::Record| matches!(record.body, Body::Promoted(_));
    let promotions = report.records.iter().filter(|record| promoted(record)).count();
    // Pages that hold several filters become data and code in turns.
    ensure!((promotions > 10) == jit, "{promotions} promotions");
    Ok(())
}

fn stress_under(name: &str, place: &Place<'_>, policy: Policy) -> anyhow::Result<()> {
    check_stress(name, protected(place, Cloud, "stress:5", policy)?, 5)
}

/// A policy with this reaction to everything.
fn always(reaction: Reaction) -> Policy {
    Policy { reactions: [reaction; ViolationKind::COUNT], ..Policy::default() }
}

fn policy_log(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    // What was let through is text from then on, and with kprobes a breakpoint in its place is legal.
    let patching = Patching { kprobes: false, ..Patching::ALL };
    let mut policy = Policy { patching, ..Policy::default() };
    for kind in [ViolationKind::WriteText, ViolationKind::ControlRegister, ViolationKind::Msr] {
        if let Some(reaction) = policy.reactions.get_mut(kind as usize) {
            *reaction = Reaction::Log;
        }
    }
    let report = quietly(name, &protected(place, Cloud, "probe", policy)?)?;
    report.finished()?;
    for probe in report.all::<crate::judge::Probe>("probe")? {
        if matches!(probe.name.as_str(), "text-pte" | "cr4-smep" | "msr-star") {
            ensure!(
                probe.result == "succeeded" && probe.last_event > probe.first_event,
                "{} should succeed and be logged, but: {} {}",
                probe.name,
                probe.result,
                probe.detail
            );
        }
    }
    for (sequence, violation) in report.violations() {
        let expected = policy
            .reactions
            .get(usize::from(violation.kind))
            .map(|reaction| reaction.alone() as u8);
        ensure!(Some(violation.verdict) == expected, "event {sequence} has another verdict");
    }
    Ok(())
}

fn policy_stop(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let report = quietly(name, &protected(place, Cloud, "probe", always(Reaction::Stop))?)?;
    ensure!(report.outcome.ended == Ended::Stopped, "it ended with {:?}", report.outcome.ended);
    let violations = report.violations();
    let [(_, violation)] = violations.as_slice() else {
        bail!("{} violations, not one", violations.len());
    };
    ensure!(violation.verdict == Verdict::Stop as u8, "the event does not say stop");
    ensure!(report.count("probe") == 0, "the guest went on");
    Ok(())
}

fn policy_no_modules(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let policy = Policy { modules: Modules::Deny, ..Policy::default() };
    let report = quietly(name, &protected(place, Cloud, "probe", policy)?)?;
    ensure!(report.count("probe") == 0, "the module was loaded and ran");
    let violations = report.violations();
    let (_, first) = violations.first().ok_or_else(|| anyhow::anyhow!("no event"))?;
    ensure!(first.kind == ViolationKind::Execute as u8, "the event is of another kind");
    Ok(())
}
