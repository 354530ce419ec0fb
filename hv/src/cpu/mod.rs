//! CPUs: their stacks, descriptor tables and what they let each other see.
//!
//! A CPU is known by its index, 0 for the one that the firmware started. Everything private to a
//! CPU lives in [`crate::vcpu::Vcpu`] and is passed down by reference; only [`CpuShared`] is seen by others.

pub mod apic;
pub mod control;
pub mod instructions;
pub mod stack;
pub mod tables;

use abi::MAX_CPUS;
use abi::hypercall::Counter;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// What other CPUs see of a CPU.
pub struct CpuShared {
    /// Local APIC id.
    pub apic_id: AtomicU32,
    /// The guest may be running here: the CPU is past its last check before VMRUN and its exit has
    /// not been noted yet. See [`crate::vm::shootdown`].
    pub in_guest: AtomicBool,
    /// A shootdown's NMI was sent and its exit has not been seen.
    pub kicked: AtomicBool,
    counters: [AtomicU64; Counter::ALL.len()],
}

impl CpuShared {
    const fn new() -> Self {
        Self {
            apic_id: AtomicU32::new(0),
            in_guest: AtomicBool::new(false),
            kicked: AtomicBool::new(false),
            counters: [const { AtomicU64::new(0) }; Counter::ALL.len()],
        }
    }

    /// Adds one to a counter. Only the CPU itself counts, so a load and a store suffice.
    pub fn count(&self, counter: Counter) {
        if let Some(cell) = self.counters.get(counter as usize) {
            cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }
}

static SHARED: [CpuShared; MAX_CPUS] = [const { CpuShared::new() }; MAX_CPUS];
static ONLINE: AtomicU32 = AtomicU32::new(0);

/// The shared part of CPU `index`.
pub fn shared(index: usize) -> &'static CpuShared {
    // An index comes from `online()` or from the CPU itself, so the fallback is never taken.
    SHARED.get(index).unwrap_or(&SHARED[0])
}

/// Number of CPUs that the hypervisor runs.
pub fn online() -> usize {
    ONLINE.load(Ordering::Acquire) as usize
}

/// Notes that one more CPU is ready.
pub fn note_online() {
    ONLINE.fetch_add(1, Ordering::AcqRel);
}

/// Sum of a counter over all CPUs.
pub fn total(counter: Counter) -> u64 {
    SHARED
        .iter()
        .filter_map(|cpu| cpu.counters.get(counter as usize))
        .map(|cell| cell.load(Ordering::Relaxed))
        .sum()
}
