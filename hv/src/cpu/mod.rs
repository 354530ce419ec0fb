//! CPUs: their stacks, descriptor tables and what they let each other see.
//!
//! A CPU is known by its index, 0 for the one that the firmware started. Everything private to a
//! CPU lives in [`crate::vcpu::Vcpu`] and is passed down by reference; only [`CpuShared`] is seen by others.

pub mod apic;
pub mod control;
pub mod instructions;
pub mod stack;
pub mod tables;

use crate::publish::REGION;
use abi::MAX_CPUS;
use abi::hypercall::Counter;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What other CPUs see of a CPU.
pub struct CpuShared {
    /// Local APIC id.
    pub apic_id: AtomicU32,
    /// The guest may be running here: the CPU is past its last check before VMRUN and its exit has
    /// not been noted yet. See [`crate::vm::shootdown`].
    pub in_guest: AtomicBool,
    /// A shootdown's NMI was sent and its exit has not been seen.
    pub kicked: AtomicBool,
    /// The CPU does nothing for the guest: it waits, or runs a task. It looks whether the VM was
    /// stopped before it does any more.
    pub parked: AtomicBool,
    index: usize,
}

impl CpuShared {
    const fn new(index: usize) -> Self {
        Self {
            apic_id: AtomicU32::new(0),
            in_guest: AtomicBool::new(false),
            kicked: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            index,
        }
    }

    /// Adds one to a counter. Only the CPU itself counts.
    #[inline]
    pub fn count(&self, counter: Counter) {
        REGION.count(self.index, counter);
    }
}

static SHARED: [CpuShared; MAX_CPUS] = {
    let mut all = [const { CpuShared::new(0) }; MAX_CPUS];
    let mut index = 0;
    while index < MAX_CPUS {
        all[index].index = index;
        index += 1;
    }
    all
};
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
