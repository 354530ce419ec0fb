//! Violations: one event each, and the reaction that the policy has for the kind.

use crate::report;
use crate::task::{self, inbox::Post, turn};
use crate::vcpu::Vcpu;
use crate::vendor::{Exception, Vendor};
use abi::event::{NO_ADDRESS, NO_REGISTER, Verdict, Violation, ViolationKind};
use abi::hypercall::Counter;
use abi::policy::Reaction;
use abi::task::{HekiExit, MessageKind};
use addr::{Gpa, Gva};
use zerocopy::IntoBytes;

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

/// Reports an attempt and answers what to do about it: `Log` or `Deny`. `Stop` does not return. The
/// caller holds no lock: where the policy says so, the warden is asked.
pub fn report(vcpu: &mut Vcpu<impl Vendor>, attempt: Attempt) -> Verdict {
    let violation = describe(vcpu, attempt);
    if attempt.kind == ViolationKind::ControlRegister {
        tell_denial(vcpu.vm.policy.announce, &violation);
    }
    let verdict = match vcpu.vm.policy.reaction(attempt.kind) {
        Reaction::Ask => ask(vcpu, &violation),
        reaction => reaction.alone(),
    };
    conclude(vcpu, violation, attempt.kind, verdict)
}

fn conclude(
    vcpu: &Vcpu<impl Vendor>,
    violation: Violation,
    kind: ViolationKind,
    verdict: Verdict,
) -> Verdict {
    vcpu.shared().count(Counter::Violations);
    report::violation(&Violation { verdict: verdict as u8, ..violation });
    if verdict == Verdict::Stop {
        report::fatal(format_args!("stopped by policy: {}", kind.name()));
    }
    verdict
}

/// The attempt as a record, whose verdict is yet to come.
fn describe(vcpu: &Vcpu<impl Vendor>, attempt: Attempt) -> Violation {
    Violation {
        vm: 0,
        vcpu: u16::try_from(vcpu.index).unwrap_or(u16::MAX),
        kind: attempt.kind as u8,
        verdict: Verdict::Deny as u8,
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
    }
}

/// What the warden says; without an answer the attempt is denied.
fn ask(vcpu: &mut Vcpu<impl Vendor>, violation: &Violation) -> Verdict {
    let bytes = violation.as_bytes();
    let post = Post::new(MessageKind::Question, 0, turn::new_token(), bytes);
    let about = (violation.gpa != NO_ADDRESS).then(|| Gpa::new(violation.gpa).frame());
    turn::ask(vcpu, Post { about, ..post }).unwrap_or(Verdict::Deny)
}

/// Tells the warden of a refused write to a control register as Heki's RFC does.
fn tell_denial(announced: bool, violation: &Violation) {
    let reason = match violation.register {
        0 => HekiExit::CR0,
        _ => HekiExit::CR4,
    };
    let exit = HekiExit { reason, value: violation.new };
    if announced {
        task::tell_warden(Post::new(MessageKind::Heki, 0, 0, exit.as_bytes()));
    }
}

/// Reports an attempt; a refused one becomes #GP. Says whether the policy lets it through.
pub fn is_let_through(vcpu: &mut Vcpu<impl Vendor>, attempt: Attempt) -> bool {
    let verdict = report(vcpu, attempt);
    if verdict == Verdict::Deny {
        vcpu.inject(Exception::GeneralProtection);
    }
    verdict == Verdict::Log
}

/// Reports an attempt after which nothing can go on, whatever the policy says, and stops the machine.
pub fn stop(vcpu: &Vcpu<impl Vendor>, attempt: Attempt) -> ! {
    let _ = conclude(vcpu, describe(vcpu, attempt), attempt.kind, Verdict::Stop);
    report::power_off()
}

/// Reports an attempt that has neither address nor value, and cannot be let through: there is
/// nothing to ask.
pub fn report_without_address(vcpu: &Vcpu<impl Vendor>, kind: ViolationKind) {
    let verdict = vcpu.vm.policy.reaction(kind).alone();
    let _ = conclude(vcpu, describe(vcpu, Attempt::new(kind)), kind, verdict);
}
