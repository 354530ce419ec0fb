//! Test build only: a bug, planted. A guest has the hypervisor read, write and jump where it says
//! ([`abi::planted`]), and learns what came of it: a page fault is survived and reported.
//!
//! With it the tests show what a bug of the hypervisor's can reach; and, by a direct map that covers
//! guest memory, or CPUs that do not flush, that without the protection it could reach more.

use crate::cpu::{self, apic, instructions};
use crate::memory::{DIRECT_MAP, WINDOWS, flush, pool};
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use abi::MAX_CPUS;
use abi::planted::{self, Kind, REFUSED, Request, WRITTEN};
use addr::{Gfn, Hfn, Hpa, PAGE_SIZE};
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use frames::{Owner, SecretHandle};

const _: () = assert!(planted::DIRECT_MAP == DIRECT_MAP.raw() && planted::WINDOWS == WINDOWS.raw());

/// A task that is not there, and has what is taken for it.
pub const TASK: u32 = 0x77;
/// Ticks after which nobody waits any more.
const PATIENCE: u64 = 1 << 36;

// RDI: where to note the stack pointer, RSI: what to do, RDX: where, RCX: with what. Answers in RAX
// and RDX. `planted_landing` is where a fault meanwhile goes on.
global_asm!(
    ".text",
    "planted_access:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "mov rbx, rdi",
    "mov [rbx], rsp",
    "cmp rsi, 1",
    "je 1f",
    "ja 2f",
    "mov rax, [rdx]",
    "jmp 3f",
    "1: mov [rdx], rcx",
    "xor eax, eax",
    "jmp 3f",
    "2: call rdx",
    "xor eax, eax",
    "3: mov edx, 1",
    "4: mov qword ptr [rbx], 0",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    "planted_landing:",
    "mov rbx, rdi",
    "mov rsp, [rbx]",
    "xor edx, edx",
    "jmp 4b",
);

/// Value, and whether it was reached.
#[repr(C)]
struct Answer {
    value: u64,
    done: u64,
}

unsafe extern "C" {
    fn planted_access(landing: *const AtomicU64, kind: u64, address: u64, value: u64) -> Answer;
    fn planted_landing(landing: *const AtomicU64) -> !;
}

/// The stack pointer of an access that is being made, per CPU.
static LANDINGS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static HELD: AtomicU64 = AtomicU64::new(0);
static TAKEN: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static SECRET: AtomicU64 = AtomicU64::new(0);
static DEAF: AtomicBool = AtomicBool::new(false);

/// Whether CPUs say that they have flushed without doing so.
pub fn is_deaf() -> bool {
    DEAF.load(Ordering::SeqCst)
}

/// Goes on after a planted access that faulted, if the fault on this CPU is one.
pub fn survive() {
    let own = apic::id();
    let is_own = |index: &usize| cpu::shared(*index).apic_id.load(Ordering::Relaxed) == own;
    let landing = (0..cpu::online()).find(is_own).and_then(|index| LANDINGS.get(index));
    if let Some(landing) = landing.filter(|landing| landing.load(Ordering::Relaxed) != 0) {
        // SAFETY: it is the stack pointer in `planted_access`, which runs on this CPU and has not
        // returned. The trap stack is left for good, as each trap begins at its top.
        unsafe { planted_landing(landing) };
    }
}

fn access(cpu: usize, request: Request, address: u64) -> u64 {
    let Some(landing) = LANDINGS.get(cpu) else { return REFUSED };
    // SAFETY: it is not: that is what it is for. A fault is survived.
    let answer = unsafe { planted_access(landing, request as u64, address, WRITTEN) };
    if answer.done == 0 { REFUSED } else { answer.value }
}

/// Does what a guest asks for.
pub fn handle(vcpu: &Vcpu<impl Vendor>) -> u64 {
    let (cpu, argument) = (vcpu.index, vcpu.gpr(1));
    let Some(request) = Request::from_number(vcpu.gpr(3)) else { return REFUSED };
    match request {
        Request::Read | Request::Write | Request::Jump => access(cpu, request, argument),
        Request::Cover => done(pool::cover(Hpa::new(argument).frame())),
        Request::Uncover => {
            pool::uncover(Hpa::new(argument).frame());
            flush::everywhere(cpu);
            0
        }
        Request::Hold => {
            let frame = Gfn::new(argument);
            if !vcpu.vm.is_ram(frame) {
                return REFUSED;
            }
            let Some(window) = vcpu.windows.open(frame.identity()) else { return REFUSED };
            wait_for_release(cpu, window.address());
            access(cpu, Request::Read, window.address())
        }
        Request::Watch => {
            let _ = access(cpu, Request::Read, argument);
            wait_for_release(cpu, argument);
            access(cpu, Request::Read, argument)
        }
        Request::Held => HELD.load(Ordering::SeqCst),
        Request::Release => HELD.swap(0, Ordering::SeqCst),
        Request::Take => Kind::from_number(argument).map_or(REFUSED, |kind| take(cpu, kind)),
        Request::GiveBack => {
            Kind::from_number(argument).map_or(REFUSED, |kind| give_back(cpu, kind))
        }
        Request::Tidy => {
            pool::tidy(cpu);
            0
        }
        Request::Leaves => {
            let leaves = pool::leaves();
            let counts = [leaves.large, leaves.small, leaves.splits, leaves.collapses];
            counts.into_iter().rev().fold(0, |all, count| all << 16 | count & 0xffff)
        }
        Request::Deaf => {
            DEAF.store(argument != 0, Ordering::SeqCst);
            0
        }
    }
}

fn done<E>(outcome: Result<(), E>) -> u64 {
    outcome.map_or(REFUSED, |()| 0)
}

/// Waits, as the hypervisor waits anywhere, until another CPU says so.
fn wait_for_release(cpu: usize, address: u64) {
    HELD.store(address, Ordering::SeqCst);
    let start = instructions::time_stamp();
    while HELD.load(Ordering::SeqCst) != 0
        && instructions::time_stamp().wrapping_sub(start) < PATIENCE
    {
        flush::serve(cpu);
        instructions::spin_hint();
    }
    HELD.store(0, Ordering::SeqCst);
}

fn take(cpu: usize, kind: Kind) -> u64 {
    let frame = match kind {
        Kind::Hv => take_one(cpu, Owner::Hv),
        Kind::Task => take_one(cpu, Owner::Task(TASK)),
        Kind::Secret => pool::secret_create(cpu, TASK, PAGE_SIZE).ok().and_then(|handle| {
            SECRET.store(u64::from(handle.raw()), Ordering::SeqCst);
            let mut first = None;
            pool::secret_blocks(TASK, handle, |block| first = first.or(Some(block.start))).ok()?;
            first
        }),
    };
    let Some((frame, place)) = frame.zip(TAKEN.get(addr::length(kind as u64))) else {
        return REFUSED;
    };
    place.store(frame.raw(), Ordering::SeqCst);
    frame.raw()
}

fn give_back(cpu: usize, kind: Kind) -> u64 {
    let place = TAKEN.get(addr::length(kind as u64));
    let frame = Hfn::new(place.map_or(0, |place| place.load(Ordering::SeqCst)));
    match kind {
        Kind::Hv => done(pool::give_back(&[frame], Owner::Hv)),
        Kind::Task => done(pool::give_back(&[frame], Owner::Task(TASK))),
        Kind::Secret => {
            let handle = u32::try_from(SECRET.load(Ordering::SeqCst)).unwrap_or(0);
            done(pool::secret_destroy(cpu, TASK, SecretHandle::from_raw(handle)))
        }
    }
}

fn take_one(cpu: usize, owner: Owner) -> Option<Hfn> {
    pool::take(cpu, owner, 1).ok()?.first().copied()
}
