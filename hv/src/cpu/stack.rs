//! Stacks. Every CPU has one for its work and one for exceptions; the lowest page of each is left
//! unmapped ([`guard_pages`]), so that an overflow is a fault and not a silent overwrite.

use abi::MAX_CPUS;
use addr::{Hva, PAGE_SIZE};
use core::cell::UnsafeCell;

const WORK_BYTES: usize = 40 * 1024;
const TRAP_BYTES: usize = 12 * 1024;

#[repr(C, align(4096))]
struct Stacks {
    work: [u8; WORK_BYTES],
    trap: [u8; TRAP_BYTES],
}

#[repr(transparent)]
struct PerCpu(UnsafeCell<[Stacks; MAX_CPUS]>);
// SAFETY: the bytes are reached through stack pointers only, and each CPU is given its own.
unsafe impl Sync for PerCpu {}

static STACKS: PerCpu = PerCpu(UnsafeCell::new(
    [const { Stacks { work: [0; WORK_BYTES], trap: [0; TRAP_BYTES] } }; MAX_CPUS],
));

#[repr(transparent)]
struct StackPointer(*const u8);
// SAFETY: an address; the memory behind is governed by `PerCpu`.
unsafe impl Sync for StackPointer {}

/// Where `entry.s` finds the first CPU's stack.
#[unsafe(no_mangle)]
static boot_stack_pointer: StackPointer =
    StackPointer((&raw const STACKS).cast::<u8>().wrapping_add(WORK_BYTES));

fn base(cpu: usize) -> u64 {
    (&raw const STACKS).addr() as u64 + (cpu * size_of::<Stacks>()) as u64
}

/// Top of the stack that CPU `cpu` works on.
pub fn work_top(cpu: usize) -> u64 {
    base(cpu) + WORK_BYTES as u64
}

/// Top of the stack that CPU `cpu` takes exceptions on.
pub fn trap_top(cpu: usize) -> u64 {
    base(cpu) + size_of::<Stacks>() as u64
}

/// The pages below the stacks, which must not be mapped.
pub fn guard_pages() -> impl Iterator<Item = Hva> {
    (0..MAX_CPUS).flat_map(|cpu| [base(cpu), base(cpu) + WORK_BYTES as u64]).map(|address| {
        debug_assert!(address.is_multiple_of(PAGE_SIZE));
        Hva::new(address)
    })
}
