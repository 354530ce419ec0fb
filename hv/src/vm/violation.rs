//! Violations: one event each, and the reaction that the policy has for the kind.

use crate::report;
use crate::vcpu::Vcpu;
use crate::vendor::{Exception, Vendor};
use abi::event::{NO_ADDRESS, NO_REGISTER, Verdict, Violation, ViolationKind};
use abi::hypercall::Counter;
use addr::{Gpa, Gva};

/// What was attempted; fields that do not apply stay as in [`Attempt::new`].
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Its kind.
    pub kind: ViolationKind,
    /// Address of the access.
    pub gva: Option<Gva>,
    /// Where that leads.
    pub gpa: Option<Gpa>,
    /// The register, by the numbering of [`Violation::register`].
    pub register: Option<u32>,
    /// Bytes that would have changed.
    pub size: u32,
    /// Value before.
    pub old: u64,
    /// Value that was to be written.
    pub new: u64,
}

impl Attempt {
    /// An attempt of which only the kind is known.
    pub const fn new(kind: ViolationKind) -> Self {
        Self { kind, gva: None, gpa: None, register: None, size: 0, old: 0, new: 0 }
    }
}

/// Reports an attempt and answers what to do about it: `Log` or `Deny`. `Stop` does not return.
pub fn report(vcpu: &Vcpu<impl Vendor>, attempt: Attempt) -> Verdict {
    let verdict = vcpu.vm.policy.reaction(attempt.kind).alone();
    vcpu.shared().count(Counter::Violations);
    report::violation(&Violation {
        vm: 0,
        vcpu: u16::try_from(vcpu.index).unwrap_or(u16::MAX),
        kind: attempt.kind as u8,
        verdict: verdict as u8,
        cpl: vcpu.cpl(),
        reserved: 0,
        register: attempt.register.unwrap_or(NO_REGISTER),
        size: attempt.size,
        rip: vcpu.rip().raw(),
        gva: attempt.gva.map_or(NO_ADDRESS, Gva::raw),
        gpa: attempt.gpa.map_or(NO_ADDRESS, Gpa::raw),
        old: attempt.old,
        new: attempt.new,
        kernel_base: vcpu.vm.kernel().map_or(0, |kernel| kernel.gva.raw()),
    });
    if verdict == Verdict::Stop {
        report::fatal(format_args!("stopped by policy: {}", attempt.kind.name()));
    }
    verdict
}

/// Reports an attempt; a refused one becomes #GP. Says whether the policy lets it through.
pub fn is_let_through(vcpu: &mut Vcpu<impl Vendor>, attempt: Attempt) -> bool {
    let verdict = report(vcpu, attempt);
    if verdict == Verdict::Deny {
        vcpu.inject(Exception::GeneralProtection);
    }
    verdict == Verdict::Log
}

/// Reports an attempt that has neither address nor value, and cannot be let through.
pub fn report_without_address(vcpu: &Vcpu<impl Vendor>, kind: ViolationKind) {
    let _ = report(vcpu, Attempt::new(kind));
}
