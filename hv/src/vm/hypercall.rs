//! Hypercalls by number: Ravelin's own ([`abi::hypercall`]), by which a guest reads counters and has
//! page tables audited at any privilege level and its kernel makes pages secret; all others are [`heki`]'s.

use super::{Stage, heki, restore, state};
use crate::cpu::instructions::time_stamp;
use crate::log;
use crate::memory::{audit, flush, pool, secret};
use crate::publish::{self, REGION};
use crate::report;
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use abi::hypercall::errno::{EFAULT, EINVAL, EPERM};
use abi::hypercall::{
    AUDIT, AUDIT_FAILED, AUDIT_LATER, Counter, MAKE_ORDINARY, MAKE_SECRET, MOST_SECRET_PAGES,
    READ_COUNTER, RESTORE_STATE, SAVE_STATE, UNKNOWN,
};
use addr::{FrameRange, Gfn};
use integrity::state::PageState;
use spin::mutex::SpinMutex;

/// The counters of which each exit increments exactly one.
const KINDS: [Counter; 11] = [
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
    Counter::Task,
];

/// Answers a hypercall; RIP is past it already.
pub fn handle(vcpu: &mut Vcpu<impl Vendor>) {
    let answer = match (vcpu.gpr(0), Counter::from_number(vcpu.gpr(3))) {
        (READ_COUNTER, Some(counter)) => read(vcpu, counter),
        (READ_COUNTER, None) => UNKNOWN,
        (SAVE_STATE, _) => state::write(vcpu),
        (RESTORE_STATE, _) => restore::on_request(vcpu),
        (AUDIT, _) => audit(vcpu),
        #[cfg(feature = "planted")]
        (abi::planted::PLANTED, _) => crate::planted::handle(vcpu),
        (MAKE_SECRET, _) => set_secret(vcpu, true),
        (MAKE_ORDINARY, _) => set_secret(vcpu, false),
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

/// Judges all page tables, unless the last time was too recent.
fn audit(vcpu: &Vcpu<impl Vendor>) -> u64 {
    /// An audit is followed by so many times its own duration without one.
    const PAUSE: u64 = 100;
    /// Time stamp before which no audit is made. Held while one is made.
    static NOT_BEFORE: SpinMutex<u64> = SpinMutex::new(0);
    let Some(mut not_before) = NOT_BEFORE.try_lock() else { return AUDIT_LATER };
    let start = time_stamp();
    if start < *not_before {
        return AUDIT_LATER;
    }
    let outcome = audit::all(vcpu.vm, vcpu.index);
    let end = time_stamp();
    *not_before = end.saturating_add(end.saturating_sub(start).saturating_mul(PAUSE));
    match outcome {
        Ok(report) => report.runs,
        Err(finding) => {
            log!("audit: {finding}");
            AUDIT_FAILED
        }
    }
}

/// Makes pages of the guest secret, or ordinary again.
fn set_secret(vcpu: &Vcpu<impl Vendor>, make: bool) -> u64 {
    let (first, count) = (Gfn::new(vcpu.gpr(3)), vcpu.gpr(1));
    let refused = |errno: u64| errno.wrapping_neg();
    if vcpu.cpl() != 0 {
        return refused(EPERM);
    }
    if count == 0 || count > MOST_SECRET_PAGES {
        return refused(EINVAL);
    }
    let frames = FrameRange::with_count(first, count);
    if first.checked_add(count).is_none() || !frames.iter().all(|frame| vcpu.vm.is_ram(frame)) {
        return refused(EFAULT);
    }
    // What the hypervisor must look at to keep the kernel's promises stays open to it.
    let memory = vcpu.vm.memory.lock();
    let is_data = |frame| memory.page(frame).is_some_and(|page| page.state == PageState::Data);
    if make && !frames.iter().all(is_data) {
        return refused(EPERM);
    }
    drop(memory);
    secret::set(frames, make);
    // A window that another CPU had open is closed when it has served this.
    flush::everywhere(vcpu.index);
    0
}
