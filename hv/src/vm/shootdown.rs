//! Making every CPU forget what a second-stage table said before a change.
//!
//! `generation` counts changes. A CPU that enters the guest first says so (`in_guest`), then reads
//! the generation, and flushes if it is news. The changing CPU counts first, then looks who is in
//! the guest; those it interrupts with an NMI and waits until they have left or have entered anew.
//! All four accesses are sequentially consistent, so at least one side sees the other. CPUs that
//! are in the hypervisor need not answer: they cannot use the guest's translations, and cannot
//! enter without the check. So nobody waits for a lock holder that waits for him.

use super::Vm;
use crate::cpu::{self, CpuShared, apic};
use crate::memory::flush;
use crate::vendor::Vendor;
use abi::MAX_CPUS;
use core::sync::atomic::{AtomicU64, Ordering};
use paging::{Due, Flushed};

static SEEN: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Last step before the entry; says whether something has changed: then a flush is due, and a look
/// at the lock. Waits while the VM is held.
pub fn enter_guest(vm: &Vm<impl Vendor>, index: usize) -> bool {
    let shared = cpu::shared(index);
    loop {
        shared.in_guest.store(true, Ordering::SeqCst);
        if !waits(vm) {
            break;
        }
        shared.in_guest.store(false, Ordering::SeqCst);
        shared.parked.store(true, Ordering::SeqCst);
        while waits(vm) {
            flush::serve(index);
            core::hint::spin_loop();
        }
        shared.parked.store(false, Ordering::SeqCst);
    }
    let generation = vm.generation.load(Ordering::SeqCst);
    let Some(seen) = SEEN.get(index) else { return true };
    if seen.load(Ordering::Relaxed) == generation {
        return false;
    }
    seen.store(generation, Ordering::SeqCst);
    true
}

fn waits(vm: &Vm<impl Vendor>) -> bool {
    vm.hold.load(Ordering::SeqCst) || vm.stop.load(Ordering::SeqCst)
}

/// Waits until no CPU but the caller, which is in the hypervisor, can use a translation from
/// before this call. The caller flushes at its own next entry by the same count.
pub fn flush_all<'a>(vm: &Vm<impl Vendor>, caller: usize, due: Due<'a>) -> Flushed<'a> {
    let generation = vm.generation.fetch_add(1, Ordering::SeqCst) + 1;
    wait_for_others(caller, |index| {
        SEEN.get(index).is_none_or(|seen| seen.load(Ordering::SeqCst) >= generation)
    });
    due.acknowledged()
}

/// Keeps all other vCPUs out of the guest until [`release`].
pub fn hold(vm: &Vm<impl Vendor>, caller: usize) {
    vm.hold.store(true, Ordering::SeqCst);
    wait_for_others(caller, |_| false);
}

/// Lets the others go on. They flush, and look how far the lock has come.
pub fn release(vm: &Vm<impl Vendor>) {
    vm.generation.fetch_add(1, Ordering::SeqCst);
    vm.hold.store(false, Ordering::SeqCst);
}

/// Stops the VM until [`resume`]: afterwards no other CPU does anything for the guest, not even what
/// it had begun at an exit. The caller holds no lock, since others may have to take it to come to an
/// end. Says whether it is the one who stops the VM: another may have been faster.
pub fn stop(vm: &Vm<impl Vendor>, caller: usize) -> bool {
    if vm.stop.swap(true, Ordering::SeqCst) {
        return false;
    }
    wait_for_others(caller, |_| false);
    for index in (0..cpu::online()).filter(|index| *index != caller) {
        while !cpu::shared(index).parked.load(Ordering::SeqCst) {
            flush::serve(caller);
            core::hint::spin_loop();
        }
    }
    true
}

/// Lets all CPUs go on, which find that another kernel has followed.
pub fn resume(vm: &Vm<impl Vendor>) {
    vm.generation.fetch_add(1, Ordering::SeqCst);
    vm.stop.store(false, Ordering::SeqCst);
}

/// Interrupts every other CPU that may run the guest, and waits until it has left it or `passed`.
fn wait_for_others(caller: usize, passed: impl Fn(usize) -> bool) {
    let busy =
        |index: usize, cpu: &CpuShared| cpu.in_guest.load(Ordering::SeqCst) && !passed(index);
    let others = || (0..cpu::online()).filter(move |index| *index != caller);
    for index in others() {
        let cpu = cpu::shared(index);
        if busy(index, cpu) && !cpu.kicked.swap(true, Ordering::SeqCst) {
            apic::send_nmi(cpu.apic_id.load(Ordering::Relaxed));
        }
    }
    for index in others() {
        while busy(index, cpu::shared(index)) {
            flush::serve(caller);
            core::hint::spin_loop();
        }
    }
}
