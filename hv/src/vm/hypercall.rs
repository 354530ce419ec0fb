//! Hypercalls by number: Ravelin's own ([`abi::hypercall`]), by which a guest reads counters at any
//! privilege level; all others are [`heki`]'s.

use super::{Stage, heki};
use crate::memory::pool;
use crate::publish::{self, REGION};
use crate::report;
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use abi::hypercall::{Counter, READ_COUNTER, UNKNOWN};

/// The counters of which each exit increments exactly one.
const KINDS: [Counter; 10] = [
    Counter::ViewSwitch,
    Counter::NestedFault,
    Counter::Cpuid,
    Counter::Msr,
    Counter::ControlRegister,
    Counter::DescriptorTable,
    Counter::Nmi,
    Counter::Port,
    Counter::Hypercall,
    Counter::Other,
];

/// Answers a hypercall; RIP is past it already.
pub fn handle(vcpu: &mut Vcpu<impl Vendor>) {
    let answer = match (vcpu.gpr(0), Counter::from_number(vcpu.gpr(3))) {
        (READ_COUNTER, Some(counter)) => read(vcpu, counter),
        (READ_COUNTER, None) => UNKNOWN,
        (number, _) => heki::handle(vcpu, number),
    };
    vcpu.set_gpr(0, answer);
}

fn read(vcpu: &Vcpu<impl Vendor>, counter: Counter) -> u64 {
    match counter {
        Counter::LastEvent => report::last_sequence(),
        Counter::Locked => match vcpu.vm.stage() {
            Stage::Boot => 0,
            Stage::Text => 1,
            Stage::Full => 2,
        },
        // Every exit is of one kind; adding them up here spares each exit an addition.
        Counter::Exits => KINDS.into_iter().map(|kind| REGION.total(kind)).sum(),
        Counter::SupervisorMode => vcpu.vm.separation().mode() as u64,
        Counter::OwnMemory => pool::region().start.start().raw(),
        Counter::Published => publish::frames().start.start().raw(),
        Counter::PublishedBytes => published::BYTES as u64,
        counted => REGION.total(counted),
    }
}
