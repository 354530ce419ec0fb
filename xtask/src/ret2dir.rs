//! End-to-end tests of the hypervisor's own memory: a bug that is planted in a test build of it reads,
//! writes and jumps where an attacker says, and reaches nothing that is not the hypervisor's.

use crate::e2e::{Case, Place, SUPPORTED, case, no_violation, quietly};
use crate::packages::Flavour::Cloud;
use abi::policy::Policy;
use anyhow::ensure;
use ravelin::machine::Machine;
use serde::Deserialize;
use std::time::Duration;

/// Where something must be reached each time: the protection is off there, or the memory is the
/// hypervisor's own, or it is the audit that must see it.
const REACHED: &[&str] = &[
    "audit, covered",
    "guest, 2 MiB, covered",
    "guest, 4 KiB, covered",
    "leaf in a TLB, not flushed",
    "the hypervisor's own",
    "window on its own CPU",
];
/// Where nothing must be.
const REFUSED: &[&str] = &[
    "guest, 2 MiB",
    "guest, 2 MiB, uncovered",
    "guest, 4 KiB",
    "guest, 4 KiB, uncovered",
    "leaf in a TLB",
    "secret, 2 MiB",
    "secret, 2 MiB, freed: data",
    "task frame",
    "task frame, freed",
    "window on another CPU",
];
/// What takes two CPUs.
const ON_TWO: &[&str] = &[
    "leaf in a TLB",
    "leaf in a TLB, not flushed",
    "window on another CPU",
    "window on its own CPU",
];

/// The cases.
pub fn cases() -> Vec<Case> {
    let on_cpus = |cpus: usize| {
        let name = format!("ret2dir-{cpus}-cpu");
        Case { on: SUPPORTED, ..case(name, move |name, place| reaches_nothing(name, place, cpus)) }
    };
    vec![on_cpus(1), on_cpus(2)]
}

/// What the guest says of a scenario.
#[derive(Deserialize)]
struct Scenario {
    scenario: String,
    tried: u64,
    reached: u64,
}

/// Leaves of the direct map.
#[derive(Debug, Deserialize, PartialEq)]
struct Leaves {
    large: u64,
    small: u64,
}

/// Leaves before and after many secrets.
#[derive(Deserialize)]
struct Churn {
    before: Leaves,
    after: Leaves,
}

fn reaches_nothing(name: &str, place: &Place<'_>, cpus: usize) -> anyhow::Result<()> {
    let protection = place.built.planted(Policy::default());
    let machine = Machine {
        cpus,
        timeout: Some(Duration::from_secs(600)),
        ..place.built.machine(place.on, Cloud, "ret2dir", protection)?
    };
    let report = quietly(name, &machine)?;
    report.finished_planted()?;
    no_violation(&report)?;
    let scenarios: Vec<Scenario> = report.all("ret2dir")?;
    let expected = REACHED.iter().chain(REFUSED);
    for wanted in expected.filter(|wanted| cpus > 1 || !ON_TWO.contains(wanted)) {
        let found = scenarios.iter().find(|scenario| scenario.scenario == **wanted);
        ensure!(found.is_some_and(|found| found.tried > 0), "`{wanted}` was not tried");
    }
    for Scenario { scenario, tried, reached } in scenarios {
        let must = if REACHED.contains(&scenario.as_str()) { tried } else { 0 };
        ensure!(reached == must, "{scenario}: {reached} of {tried} reached something, not {must}");
    }
    for Churn { before, after } in report.all("leaves")? {
        ensure!(after == before && after.small == 0, "leaves: {before:?}, then {after:?}");
    }
    Ok(())
}
