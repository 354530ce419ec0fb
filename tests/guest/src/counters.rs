//! The hypervisor's counters, as jobs report them.

use crate::ret2dir::Planted;
use abi::hypercall::Counter;
use anyhow::Result;
use hypercall::{Audit, Ravelin};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Time-stamp counter; under QEMU's `-icount shift=0` the number of executed instructions.
pub fn ticks() -> u64 {
    hypercall::ticks()
}

/// What the counters held at one moment. Without a hypervisor all are zero, and no work is spared:
/// a process that had touched a page less would fork faster, and be compared.
pub struct Snapshot(Vec<u64>);

/// Reads the counters, if a hypervisor answers.
pub struct Counters {
    ravelin: Option<Ravelin>,
}

impl Counters {
    /// Finds out whether a hypervisor that has counters is there.
    pub fn detect() -> Result<Self> {
        Ok(Self { ravelin: Ravelin::detect()? })
    }

    /// One counter.
    pub fn read(&self, counter: Counter) -> Option<u64> {
        self.ravelin.map(|ravelin| ravelin.read(counter))
    }

    /// What is in the test build of the hypervisor only; `None` without one.
    pub fn planted(&self) -> Option<Planted> {
        Planted::detect(self.ravelin?)
    }

    /// Has all page tables audited, as soon as that is possible again.
    pub fn audit(&self) -> Option<Audit> {
        let ravelin = self.ravelin?;
        for _ in 0..200 {
            match ravelin.audit() {
                Audit::Later => std::thread::sleep(Duration::from_millis(50)),
                audit => return Some(audit),
            }
        }
        Some(Audit::Later)
    }

    /// The answer to any hypercall.
    pub fn call(&self, number: u64, argument: u64) -> Option<u64> {
        self.ravelin.map(|ravelin| ravelin.call(number, argument))
    }

    /// The counters of exits.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(exit_kinds().map(|kind| self.read(kind).unwrap_or(0)).collect())
    }

    /// Exits of each kind since power-on.
    pub fn exits(&self) -> Value {
        let start = Snapshot(exit_kinds().map(|_| 0).collect());
        start.object_until(&self.snapshot(), 0)
    }

    /// Exits of each kind since `start`, without those that reading them made.
    pub fn exits_since(&self, start: &Snapshot) -> Value {
        start.object_until(&self.snapshot(), exit_kinds().map(|_| 1).sum())
    }
}

impl Snapshot {
    /// The difference by name; `own` hypercalls between the two readings are left out.
    fn object_until(&self, end: &Snapshot, own: u64) -> Value {
        let object: Map<String, Value> = exit_kinds()
            .zip(self.0.iter().zip(&end.0))
            .map(|(kind, (start, end))| {
                let own = match kind {
                    Counter::Exits | Counter::Hypercall => own,
                    _ => 0,
                };
                (kind.name().to_owned(), json!(end.wrapping_sub(*start).saturating_sub(own)))
            })
            .collect();
        Value::Object(object)
    }
}

/// The counters that count exits.
fn exit_kinds() -> impl Iterator<Item = Counter> {
    Counter::ALL.into_iter().take_while(|counter| *counter != Counter::LastEvent)
}
