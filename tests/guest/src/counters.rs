//! The hypervisor's counters, by the hypercall that every privilege level may make.

use std::arch::asm;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use abi::hypercall::{Counter, READ_COUNTER, UNKNOWN};
use anyhow::Result;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use serde_json::{Map, Value, json};

/// Bytes of a VMMCALL or VMCALL instruction.
const HYPERCALL_LENGTH: i64 = 3;
/// A number that no counter has.
const NO_COUNTER: u64 = u64::MAX;

/// Time-stamp counter; under QEMU's `-icount shift=0` the number of executed instructions.
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

macro_rules! hypercall_by {
    ($instruction:literal, $number:expr, $argument:expr) => {{
        let mut answer = $number;
        // SAFETY: the hypercall changes RAX only; without a hypervisor it raises SIGILL, for which
        // `Counters::detect` has a handler. RBX is put back, since the compiler may use it.
        unsafe {
            asm!(
                "xchg rbx, {argument}",
                $instruction,
                "xchg rbx, {argument}",
                argument = inout(reg) $argument => _,
                inout("rax") answer,
                options(nostack),
            );
        }
        answer
    }};
}

fn hypercall(counter: u64) -> u64 {
    call(READ_COUNTER, counter)
}

fn call(number: u64, argument: u64) -> u64 {
    if *IS_INTEL {
        hypercall_by!("vmcall", number, argument)
    } else {
        hypercall_by!("vmmcall", number, argument)
    }
}

/// What the counters held at one moment; nothing without a hypervisor.
pub struct Snapshot(Option<Vec<u64>>);

/// Reads the counters, if a hypervisor answers.
pub struct Counters {
    present: bool,
}

impl Counters {
    /// Finds out whether a hypervisor that has counters is there.
    pub fn detect() -> Result<Self> {
        let handler = SigHandler::SigAction(on_illegal);
        let action = SigAction::new(handler, SaFlags::SA_SIGINFO, SigSet::empty());
        // SAFETY: the handler is async-signal-safe: it stores an atomic and edits its context.
        let before = unsafe { sigaction(Signal::SIGILL, &action) }?;
        let answer = hypercall(NO_COUNTER);
        // SAFETY: puts back the action that was in force.
        unsafe { sigaction(Signal::SIGILL, &before) }?;
        Ok(Self { present: !ILLEGAL.load(Ordering::Relaxed) && answer == UNKNOWN })
    }

    /// One counter.
    pub fn read(&self, counter: Counter) -> Option<u64> {
        self.present.then(|| hypercall(counter as u64))
    }

    /// The answer to any hypercall.
    pub fn call(&self, number: u64, argument: u64) -> Option<u64> {
        self.present.then(|| call(number, argument))
    }

    /// The counters of exits.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.present.then(|| exit_kinds().map(|kind| hypercall(kind as u64)).collect()))
    }

    /// Exits of each kind since power-on, or null.
    pub fn exits(&self) -> Value {
        let start = Snapshot(self.present.then(|| exit_kinds().map(|_| 0).collect()));
        start.object_until(&self.snapshot(), 0)
    }

    /// Exits of each kind since `start`, without those that reading them made; or null.
    pub fn exits_since(&self, start: &Snapshot) -> Value {
        start.object_until(&self.snapshot(), exit_kinds().map(|_| 1).sum())
    }
}

impl Snapshot {
    /// The difference by name; `own` hypercalls between the two readings are left out.
    fn object_until(&self, end: &Snapshot, own: u64) -> Value {
        let (Some(start), Some(end)) = (&self.0, &end.0) else { return Value::Null };
        let object: Map<String, Value> = exit_kinds()
            .zip(start.iter().zip(end))
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
