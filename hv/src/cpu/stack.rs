//! Stacks. Every CPU has one for its work, one for exceptions and one for NMIs, which can strike
//! while an exception is taken; the lowest page of each is left unmapped ([`guard_pages`]), so that
//! an overflow is a fault and not a silent overwrite.
//!
//! Above the exceptions' and the NMIs' stack lies a word each, where the code that arrives there
//! finds, or leaves, what belongs to its CPU.

use abi::MAX_CPUS;
use addr::{Hva, PAGE_SIZE};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

const WORK_BYTES: usize = 48 * 1024;
const TRAP_BYTES: usize = 12 * 1024;
const NMI_BYTES: usize = 8 * 1024;
/// A word and what keeps the stack below it aligned.
const WORD_BYTES: usize = 16;

#[repr(C, align(4096))]
struct Stacks {
    work: [u8; WORK_BYTES],
    trap: [u8; TRAP_BYTES - WORD_BYTES],
    /// Address of the area of the task that runs on this CPU.
    task: [AtomicU64; 2],
    nmi: [u8; NMI_BYTES - WORD_BYTES],
    /// Not 0 after an NMI was taken.
    nmi_seen: [AtomicU64; 2],
}

#[repr(transparent)]
struct PerCpu(UnsafeCell<[Stacks; MAX_CPUS]>);
// SAFETY: the bytes are reached through stack pointers only, and each CPU is given its own.
unsafe impl Sync for PerCpu {}

static STACKS: PerCpu = PerCpu(UnsafeCell::new(
    [const {
        Stacks {
            work: [0; WORK_BYTES],
            trap: [0; TRAP_BYTES - WORD_BYTES],
            task: [const { AtomicU64::new(0) }; 2],
            nmi: [0; NMI_BYTES - WORD_BYTES],
            nmi_seen: [const { AtomicU64::new(0) }; 2],
        }
    }; MAX_CPUS],
));

#[repr(transparent)]
struct StackPointer(*const u8);
// SAFETY: an address; the memory behind is governed by `PerCpu`.
unsafe impl Sync for StackPointer {}

/// Where `entry.s` finds the first CPU's stack.
#[unsafe(no_mangle)]
static boot_stack_pointer: StackPointer =
    StackPointer((&raw const STACKS).cast::<u8>().wrapping_add(WORK_BYTES));

/// Where `entry.s` finds the page below it.
#[unsafe(no_mangle)]
static boot_stack_guard: StackPointer = StackPointer((&raw const STACKS).cast());

fn base(cpu: usize) -> u64 {
    (&raw const STACKS).addr() as u64 + (cpu * size_of::<Stacks>()) as u64
}

/// Top of the stack that CPU `cpu` works on.
pub fn work_top(cpu: usize) -> u64 {
    base(cpu) + WORK_BYTES as u64
}

/// Top of the stack that CPU `cpu` takes exceptions on.
pub fn trap_top(cpu: usize) -> u64 {
    base(cpu) + offset_of!(Stacks, task) as u64
}

/// Top of the stack that CPU `cpu` takes NMIs on.
pub fn nmi_top(cpu: usize) -> u64 {
    base(cpu) + offset_of!(Stacks, nmi_seen) as u64
}

/// The pages below the stacks, which must not be mapped.
pub fn guard_pages() -> impl Iterator<Item = Hva> {
    let stacks = [0, offset_of!(Stacks, trap), offset_of!(Stacks, nmi)];
    (0..MAX_CPUS).flat_map(move |cpu| stacks.map(|offset| base(cpu) + offset as u64)).map(
        |address| {
            debug_assert!(address.is_multiple_of(PAGE_SIZE));
            Hva::new(address)
        },
    )
}

/// Whether an access to `address` has run over the end of a stack.
pub fn has_overflowed(address: u64) -> bool {
    guard_pages().any(|guard| guard.frame() == Hva::new(address).frame())
}

/// The word at `offset` of a CPU's stacks.
fn word(cpu: usize, offset: usize) -> &'static AtomicU64 {
    let stacks = STACKS.0.get().cast::<Stacks>().wrapping_add(cpu.min(MAX_CPUS - 1));
    let word = stacks.cast::<u8>().wrapping_add(offset).cast::<AtomicU64>();
    // SAFETY: an aligned atomic inside a static, which no stack reaches.
    unsafe { &*word }
}

/// Says where what a task leaves behind goes, when it stops on CPU `cpu`.
pub fn set_task(cpu: usize, area: u64) {
    word(cpu, offset_of!(Stacks, task)).store(area, Ordering::Relaxed);
}

/// Whether an NMI was taken on CPU `cpu`, the caller, since this was last asked.
pub fn nmi_was_seen(cpu: usize) -> bool {
    word(cpu, offset_of!(Stacks, nmi_seen)).swap(0, Ordering::Relaxed) != 0
}
