//! Whether one state is weaker than another: whether anything is allowed there that is not here.
//! What no rule covers counts as weaker.

use crate::Settings;
use crate::record::Saved;
use abi::hypercall::SupervisorMode;
use abi::policy::{HekiExec, Modules, Patching, Platform, Policy, Reaction, SupervisorExec};
use addr::Gfn;
use integrity::pins::{ControlPin, Pins};
use integrity::state::{Page, View};

/// What is weaker in a state, or does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// Another size of memory.
    #[error("it is of a machine with another size of memory")]
    Frames,
    /// Another kernel, or at another place.
    #[error("it is of another kernel, or of one at another place")]
    Kernel,
    /// The lock has not come as far.
    #[error("the kernel is locked less far")]
    Stage,
    /// The policy allows something more.
    #[error("the policy allows more")]
    Policy,
    /// A pin on CR0 or CR4 that the guest asked for is missing.
    #[error("a pin that the guest asked for is missing")]
    Requested,
    /// A register of this vCPU is free that is pinned, or is pinned to another value.
    #[error("vCPU {0} has a register that is not pinned as it is now")]
    Vcpu(usize),
}

/// The first thing in which `one` is weaker than `other`, pages apart.
pub fn weaker(one: &Settings, other: &Settings) -> Option<Difference> {
    let moved = other.kernel.is_some() && one.kernel != other.kernel;
    let mut requested = one.requested.iter().zip(other.requested);
    let mut vcpus = one.vcpus.iter().zip(&other.vcpus);
    if one.frames != other.frames {
        Some(Difference::Frames)
    } else if moved || one.kernel_digest != other.kernel_digest {
        Some(Difference::Kernel)
    } else if one.stage < other.stage {
        Some(Difference::Stage)
    } else if policy_is_weaker(&one.policy, &other.policy) || unseparated(one, other) {
        Some(Difference::Policy)
    } else if !requested.all(|(one, other)| covers(*one, other)) {
        Some(Difference::Requested)
    } else {
        vcpus.position(|pair| !holds(pair)).map(Difference::Vcpu)
    }
}

fn unseparated(one: &Settings, other: &Settings) -> bool {
    one.separation == SupervisorMode::Off && other.separation != SupervisorMode::Off
}

/// Whether `one` pins every bit that `other` does, and to the same value.
const fn covers(one: ControlPin, other: ControlPin) -> bool {
    other.must_be_one & !one.must_be_one == 0 && other.must_be_zero & !one.must_be_zero == 0
}

/// Whether a vCPU's pins in one state hold what those in the other do.
fn holds((one, other): (&Option<Pins>, &Option<Pins>)) -> bool {
    let Some(other) = other else { return true };
    one.is_some_and(|one| {
        let control = [(one.cr0, other.cr0), (one.cr4, other.cr4), (one.efer, other.efer)];
        // Values are all or nothing.
        control.iter().all(|(one, other)| covers(*one, *other))
            && Pins { cr0: other.cr0, cr4: other.cr4, efer: other.efer, ..one } == *other
    })
}

/// Whether `one` lets anything happen that `other` does not. What the warden decides by must be the
/// same.
pub fn policy_is_weaker(one: &Policy, other: &Policy) -> bool {
    let exec = |policy: &Policy| match policy.heki_exec {
        HekiExec::Trust => 0,
        HekiExec::Verify => 1,
        HekiExec::Deny => 2,
    };
    let strength = |reaction| match reaction {
        Reaction::Log => 0,
        Reaction::Deny => 1,
        Reaction::Ask => 2,
        Reaction::Stop => 3,
    };
    // Whole, so that a new kind of patching must be thought of here.
    let flags = |it: Patching| {
        let Patching { jump_label, static_call, ftrace, kprobes, livepatch } = it;
        [jump_label, static_call, ftrace, kprobes, livepatch]
    };
    let patching = flags(one.patching).into_iter().zip(flags(other.patching));
    let allowed = [
        (one.supervisor_exec == SupervisorExec::Off, other.supervisor_exec == SupervisorExec::Off),
        (one.modules != Modules::Deny, other.modules != Modules::Deny),
        (one.jit, other.jit),
        (one.platform == Platform::Any, other.platform == Platform::Any),
    ];
    let mut reactions = one.reactions.iter().zip(other.reactions);
    // With what was compared made alike, the rest must be.
    let rest = Policy {
        supervisor_exec: other.supervisor_exec,
        modules: other.modules,
        // The guest's requests only narrow, but for what `heki_exec` says.
        announce: other.announce,
        patching: other.patching,
        jit: other.jit,
        heki_exec: other.heki_exec,
        platform: other.platform,
        tables: other.tables,
        // How many kernels are named does not tell which; none is the least.
        kexec: if one.kexec == 0 { other.kexec } else { one.kexec },
        reactions: other.reactions,
        ..*one
    };
    reactions.any(|(one, other)| strength(*one) < strength(other))
        || allowed.into_iter().chain(patching).any(|(one, other)| one && !other)
        || exec(one) < exec(other)
        || (one.tables as u8) < other.tables as u8
        || rest != *other
}

/// The first page of `one` that is weaker than what `other` tells of it.
pub fn first_weaker_page(
    one: &Saved<'_>,
    other: impl Fn(Gfn) -> Option<Page>,
    locked: bool,
) -> Option<Gfn> {
    let holds =
        |page, frame: Gfn| other(frame).is_some_and(|other| !page_is_weaker(page, other, locked));
    one.runs().find_map(|(run, page)| run.iter().find(|frame| !holds(page, *frame)))
}

/// Whether a page `one` allows anything, now or by a later request, that `other` does not. If
/// `other` is not `locked`, its state is enforced on nobody yet; but the hypervisor's memory stays
/// what it is, and what was asked for holds.
pub fn page_is_weaker(one: Page, other: Page, locked: bool) -> bool {
    let mut views = [View::Kernel, View::User, View::Single].into_iter().filter(|_| locked);
    let wider = views.any(|view| !other.allows(view).contains(one.allows(view)));
    wider
        || !other.state.may_become(one.state)
        || !one.withheld.contains(other.withheld)
        || (other.immutable && !one.immutable)
}
