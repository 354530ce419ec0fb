//! Starting the other CPUs, so that none is left for the guest to start outside the hypervisor.

use crate::cpu::{self, apic, instructions, stack};
use crate::memory::physical::Physical;
use addr::{Hpa, PAGE_SIZE};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const TRAMPOLINE: Hpa = Hpa::new(0x8000);
const TRAMPOLINE_PAGE: u8 = 8;
/// The page that is written to while CPUs are started.
pub const TRAMPOLINE_RANGE: Range<u64> = TRAMPOLINE.raw()..TRAMPOLINE.raw() + PAGE_SIZE;

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
}

/// Stack of the CPU that starts now; `entry.s` reads it.
#[unsafe(no_mangle)]
static next_stack: AtomicU64 = AtomicU64::new(0);
static NEXT_INDEX: AtomicUsize = AtomicUsize::new(0);

/// Index of the CPU that starts now, asked by itself.
pub fn own_index() -> usize {
    NEXT_INDEX.load(Ordering::Acquire)
}

/// Starts every CPU in `apic_ids` but the caller, one at a time, and waits until each is ready.
///
/// # Errors
/// A CPU did not come up.
pub fn start_others(memory: Physical<'_>, apic_ids: &[u32]) -> Result<(), &'static str> {
    let own = apic::id();
    // SAFETY: both symbols delimit the trampoline's bytes in read-only data.
    let code = unsafe {
        let start = &raw const trampoline_start;
        core::slice::from_raw_parts(start, (&raw const trampoline_end).addr() - start.addr())
    };
    memory.write(TRAMPOLINE, code)?;
    for (apic_id, index) in apic_ids.iter().filter(|id| **id != own).zip(1..) {
        cpu::shared(index).apic_id.store(*apic_id, Ordering::Relaxed);
        next_stack.store(stack::work_top(index), Ordering::Release);
        NEXT_INDEX.store(index, Ordering::Release);
        start(*apic_id, index)?;
    }
    memory.clear(TRAMPOLINE, 4096)?;
    Ok(())
}

/// INIT, a pause, then SIPI up to twice (APM 15.27.8; Intel's MP specification B.4).
fn start(apic_id: u32, index: usize) -> Result<(), &'static str> {
    apic::send_init(apic_id);
    pause(30_000_000, || false);
    for _ in 0..2 {
        apic::send_startup(apic_id, TRAMPOLINE_PAGE);
        if pause(2_000_000_000, || cpu::online() > index) {
            return Ok(());
        }
    }
    Err("a CPU did not start")
}

/// Waits until `done`, at most `ticks` of the time-stamp counter.
fn pause(ticks: u64, done: impl Fn() -> bool) -> bool {
    let start = instructions::time_stamp();
    while instructions::time_stamp().wrapping_sub(start) < ticks {
        if done() {
            return true;
        }
        instructions::spin_hint();
    }
    done()
}
