//! What a program in a guest asks of Ravelin: its counters, and an audit, by the hypercalls that every
//! privilege level may make ([`abi::hypercall`]). No kernel module is needed.

use std::arch::asm;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use abi::hypercall::{
    AUDIT, AUDIT_FAILED, AUDIT_LATER, Counter, READ_COUNTER, SupervisorMode, UNKNOWN,
};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Bytes of a VMMCALL or VMCALL instruction.
const HYPERCALL_LENGTH: i64 = 3;
/// A number that no counter has.
const NO_COUNTER: u64 = u64::MAX;

/// The largest errno, negated; anything above is an error.
const ERRORS: u64 = 4095_u64.wrapping_neg();

/// What came of an audit of all page tables in the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// All is as it must be.
    Passed {
        /// Runs of leaves that were judged.
        runs: u64,
    },
    /// A leaf breaks a rule; the event channel says which.
    Failed,
    /// The last audit was too recent.
    Later,
    /// This Ravelin makes none.
    Unknown,
}

/// Ravelin, under which this program runs.
#[derive(Clone, Copy)]
pub struct Ravelin(());

impl Ravelin {
    /// Finds out whether Ravelin is there. While it does, no other thread should rely on SIGILL.
    ///
    /// # Errors
    /// The kernel does not let this program handle SIGILL.
    pub fn detect() -> nix::Result<Option<Self>> {
        let handler = SigHandler::SigAction(on_illegal);
        let action = SigAction::new(handler, SaFlags::SA_SIGINFO, SigSet::empty());
        ILLEGAL.store(false, Ordering::Relaxed);
        // SAFETY: the handler is async-signal-safe: it stores an atomic and edits its context.
        let before = unsafe { sigaction(Signal::SIGILL, &action) }?;
        // KVM answers -1 to any call from user mode, so one answer must be good.
        let answers = [NO_COUNTER, Counter::SupervisorMode as u64].map(|it| call(READ_COUNTER, it));
        // SAFETY: puts back the action that was in force.
        unsafe { sigaction(Signal::SIGILL, &before) }?;
        let [unknown, mode] = answers;
        let is_there = !ILLEGAL.load(Ordering::Relaxed)
            && unknown == UNKNOWN
            && SupervisorMode::from_number(mode).is_some();
        Ok(is_there.then_some(Self(())))
    }

    /// One counter; [`UNKNOWN`] if this Ravelin does not have it.
    pub fn read(self, counter: Counter) -> u64 {
        call(READ_COUNTER, counter as u64)
    }

    /// Has all page tables in the machine audited.
    pub fn audit(self) -> Audit {
        match call(AUDIT, 0) {
            AUDIT_FAILED => Audit::Failed,
            AUDIT_LATER => Audit::Later,
            runs if runs < ERRORS => Audit::Passed { runs },
            _ => Audit::Unknown,
        }
    }

    /// The answer to any hypercall that takes one argument.
    pub fn call(self, number: u64, argument: u64) -> u64 {
        call(number, argument)
    }

    /// The answer to any hypercall that takes two arguments, in RBX and RCX.
    pub fn call_with(self, number: u64, first: u64, second: u64) -> u64 {
        call_with(number, first, second)
    }
}

/// Time-stamp counter of this CPU.
pub fn ticks() -> u64 {
    // SAFETY: RDTSC is part of x86-64 and touches nothing but its result.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Set by [`on_illegal`]: the hypercall is undefined here.
static ILLEGAL: AtomicBool = AtomicBool::new(false);

/// Steps over the instruction that raised SIGILL.
extern "C" fn on_illegal(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    ILLEGAL.store(true, Ordering::Relaxed);
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: with SA_SIGINFO the third argument is the interrupted context, which the kernel
    // reloads after the handler and nobody else uses meanwhile.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] += HYPERCALL_LENGTH };
}

/// Asked once: CPUID exits on Intel's CPUs, and would be counted.
static IS_INTEL: LazyLock<bool> = LazyLock::new(|| {
    let vendor = core::arch::x86_64::__cpuid(0);
    vendor.ebx == u32::from_le_bytes(*b"Genu")
});

macro_rules! call_by {
    ($instruction:literal, $number:expr, $argument:expr, $second:expr) => {{
        let mut answer = $number;
        // SAFETY: the hypercall changes RAX only; without a hypervisor it raises SIGILL, for which
        // `Ravelin::detect` has a handler. RBX is put back, since the compiler may use it.
        unsafe {
            asm!(
                "xchg rbx, {argument}",
                $instruction,
                "xchg rbx, {argument}",
                argument = inout(reg) $argument => _,
                in("rcx") $second,
                inout("rax") answer,
                options(nostack),
            );
        }
        answer
    }};
}

fn call(number: u64, argument: u64) -> u64 {
    call_with(number, argument, 0)
}

fn call_with(number: u64, first: u64, second: u64) -> u64 {
    if *IS_INTEL {
        call_by!("vmcall", number, first, second)
    } else {
        call_by!("vmmcall", number, first, second)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_host_without_ravelin_is_told_from_one_with_it() {
        // A hypervisor of another kind may answer; it must not be taken for Ravelin.
        assert!(super::Ravelin::detect().unwrap().is_none());
    }
}
