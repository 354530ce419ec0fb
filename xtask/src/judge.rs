//! Whether the attacks went as they must: every one succeeds on the bare machine, and under
//! Ravelin every one is refused and leaves exactly one event, of the right kind.

use crate::probes::{ATTACKS, Attack, find};
use abi::event::{Verdict, Violation};
use ravelin::report;
use serde::{Deserialize, Serialize};

/// What the guest says about one attack.
#[derive(Clone, Debug, Deserialize)]
pub struct Probe {
    /// Its name.
    pub name: String,
    /// What it does, in words.
    #[serde(default)]
    pub description: String,
    /// `succeeded`, `refused` or `error`.
    pub result: String,
    /// How it went, in words.
    #[serde(default)]
    pub detail: String,
    /// Number of the latest event before it; nothing without a hypervisor.
    pub first_event: Option<u64>,
    /// Number of the latest event after it.
    pub last_event: Option<u64>,
}

/// One attack on both machines.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What it does, in words.
    pub description: String,
    /// Its result on the bare machine.
    pub bare: String,
    /// Its result under Ravelin.
    pub ravelin: String,
    /// The events that it left.
    pub events: Vec<String>,
    /// What is not as it must be.
    pub problem: Option<String>,
}

const ABSENT: &str = "not run";

/// Compares what a guest with `cpus` CPUs said on both machines; `violations` are those under
/// Ravelin, with the numbers of their records. `denied`: of the attacks that only a stricter policy
/// refuses. The second value lists what belongs to no attack.
pub fn judge(
    cpus: usize,
    denied: bool,
    bare: &[Probe],
    ravelin: &[Probe],
    violations: &[(u64, Violation)],
) -> (Vec<Row>, Vec<String>) {
    let mut rows = Vec::new();
    let chosen = |attack: &&Attack| attack.cpus <= cpus && attack.denied == denied;
    for attack in ATTACKS.iter().filter(chosen) {
        let of = |probes: &[Probe]| probes.iter().find(|probe| probe.name == attack.name).cloned();
        let (bare, protected) = (of(bare), of(ravelin));
        let events: Vec<&Violation> = violations
            .iter()
            .filter(|(sequence, _)| protected.as_ref().is_some_and(|p| p.covers(*sequence)))
            .map(|(_, violation)| violation)
            .collect();
        let result = |probe: &Option<Probe>| {
            probe.as_ref().map_or_else(|| ABSENT.to_owned(), |probe| probe.result.clone())
        };
        rows.push(Row {
            name: attack.name.to_owned(),
            description: bare.as_ref().map(|p| p.description.clone()).unwrap_or_default(),
            bare: result(&bare),
            ravelin: result(&protected),
            events: events.iter().map(|violation| show(violation)).collect(),
            problem: problem(attack.name, bare.as_ref(), protected.as_ref(), &events),
        });
    }
    (rows, strays(bare, ravelin, violations))
}

impl Probe {
    fn covers(&self, sequence: u64) -> bool {
        let bounds = self.first_event.zip(self.last_event);
        bounds.is_some_and(|(first, last)| first < sequence && sequence <= last)
    }
}

fn problem(
    name: &str,
    bare: Option<&Probe>,
    ravelin: Option<&Probe>,
    events: &[&Violation],
) -> Option<String> {
    let (Some(bare), Some(ravelin)) = (bare, ravelin) else {
        return Some("it did not run on both machines".to_owned());
    };
    if bare.result != "succeeded" {
        return Some(format!("it does not work on the bare machine: {}", bare.detail));
    }
    if ravelin.result != "refused" {
        return Some(format!("it was not refused: {}", ravelin.detail));
    }
    let [event] = events else {
        return Some(format!("it left {} events instead of one", events.len()));
    };
    let kinds = find(name).map(|attack| attack.kinds).unwrap_or_default();
    if !kinds.iter().any(|kind| *kind as u8 == event.kind) {
        let expected: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        return Some(format!("its event should be {}", expected.join(" or ")));
    }
    if event.verdict != Verdict::Deny as u8 {
        return Some("its event does not say that it was denied".to_owned());
    }
    None
}

fn show(violation: &Violation) -> String {
    let register = report::register(violation).map(|name| format!(" {name}"));
    let verdict = report::verdict(violation);
    format!("{verdict} {}{}", report::kind(violation), register.unwrap_or_default())
}

/// Probes that nobody knows and violations that no probe explains.
fn strays(bare: &[Probe], ravelin: &[Probe], violations: &[(u64, Violation)]) -> Vec<String> {
    let unknown = bare.iter().chain(ravelin).filter(|probe| find(&probe.name).is_none());
    let unknown = unknown.map(|probe| format!("`{}` is in no table of attacks", probe.name));
    let orphans = violations
        .iter()
        .filter(|(sequence, _)| !ravelin.iter().any(|probe| probe.covers(*sequence)))
        .map(|(sequence, v)| format!("event {sequence} ({}) belongs to no attack", show(v)));
    unknown.chain(orphans).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::event::{NO_ADDRESS, NO_REGISTER, ViolationKind};

    fn probe(name: &str, result: &str, events: Option<(u64, u64)>) -> Probe {
        Probe {
            name: name.to_owned(),
            description: String::new(),
            result: result.to_owned(),
            detail: String::new(),
            first_event: events.map(|events| events.0),
            last_event: events.map(|events| events.1),
        }
    }

    fn violation(kind: ViolationKind) -> Violation {
        Violation {
            vm: 0,
            vcpu: 0,
            kind: kind as u8,
            verdict: Verdict::Deny as u8,
            cpl: 0,
            reserved: 0,
            register: NO_REGISTER,
            size: 0,
            rip: 0,
            gva: NO_ADDRESS,
            gpa: NO_ADDRESS,
            old: 0,
            new: 0,
            kernel_base: 0,
        }
    }

    /// The problem of attack `text-pte`, which owns the events 5 and 6.
    fn problem_with(bare: &str, ravelin: &str, events: &[(u64, Violation)]) -> Option<String> {
        let bare = [probe("text-pte", bare, None)];
        let ravelin = [probe("text-pte", ravelin, Some((4, 6)))];
        let (rows, _) = judge(1, false, &bare, &ravelin, events);
        rows.into_iter().find(|row| row.name == "text-pte").unwrap().problem
    }

    #[test]
    fn one_right_event_is_needed() {
        let right = violation(ViolationKind::WriteText);
        assert_eq!(problem_with("succeeded", "refused", &[(5, right)]), None);
        assert_eq!(problem_with("succeeded", "refused", &[(6, right), (9, right)]), None);
        for (bare, ravelin, events) in [
            ("refused", "refused", vec![(5, right)]),
            ("succeeded", "succeeded", vec![(5, right)]),
            ("succeeded", "refused", vec![]),
            ("succeeded", "refused", vec![(4, right)]),
            ("succeeded", "refused", vec![(5, right), (6, right)]),
            ("succeeded", "refused", vec![(5, violation(ViolationKind::Msr))]),
            ("succeeded", "refused", vec![(5, Violation { verdict: 0, ..right })]),
        ] {
            assert!(problem_with(bare, ravelin, &events).is_some(), "{bare} {ravelin}");
        }
    }

    #[test]
    fn what_did_not_run_is_a_problem() {
        let (rows, strays) = judge(2, false, &[], &[], &[]);
        assert_eq!(rows.len(), crate::probes::expected(2, false));
        assert!(rows.iter().all(|row| row.problem.is_some()));
        assert!(strays.is_empty());
    }

    #[test]
    fn what_nobody_expected_is_named() {
        let events = [(3, violation(ViolationKind::Patch))];
        let (_, strays) = judge(1, false, &[probe("new", "succeeded", None)], &[], &events);
        assert_eq!(strays.len(), 2);
    }
}
