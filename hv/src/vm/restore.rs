//! A protection state that was saved ([`super::state`]) and came with the machine, from whoever
//! started it, takes the place of the one in force.
//!
//! | when | what |
//! |---|---|
//! | before the guest starts | whole and undamaged, of this kernel and memory; its policy takes force |
//! | when the kernel is locked whole | requested pins, and what is withheld of locked pages; each vCPU's registers must be as saved |
//! | when the kernel says that its memory is what it was ([`abi::hypercall::RESTORE_STATE`]) | all pages |
//!
//! What is weaker than what is in force stops the machine; in the last case the call is refused and
//! changes nothing. The record lies in the hypervisor's memory, so nobody changes it.

use super::gate::Pages;
use super::memory::Memory;
use super::{Stage, Vm, state};
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use crate::{log, report};
use abi::hypercall::errno::{EAGAIN, ENOENT, EOPNOTSUPP, EPERM};
use core::fmt::Display;
use core::sync::atomic::{AtomicBool, Ordering};
use integrity::pins::Pins;
use protection::compare::{Difference, weaker};
use protection::record::Saved;
use protection::restore::{Refusal, Scope, restore};
use spin::Once;

static STATE: Once<Saved<'static>> = Once::new();
/// The kernel that the state is of has left.
static SPENT: AtomicBool = AtomicBool::new(false);

fn state_to_restore() -> Option<&'static Saved<'static>> {
    if SPENT.load(Ordering::Acquire) { None } else { STATE.get() }
}

/// Forgets the state: another kernel follows, whose memory is not what was saved.
pub fn begin_anew() {
    SPENT.store(true, Ordering::Release);
}

/// Keeps a state for the lock.
pub fn keep(saved: Saved<'static>) {
    STATE.call_once(|| saved);
}

/// Compares the state, if there is one, with the machine that has just been made.
#[inline(never)]
pub fn judge_machine<V: Vendor>(vm: &Vm<V>) {
    let Some(saved) = state_to_restore() else { return };
    if let Some(difference) = weaker(&saved.settings, &state::settings(vm, vm.frames())) {
        refuse(&difference);
    }
    if saved.settings.stage < Stage::Full as u8 {
        refuse(&Difference::Stage);
    }
}

/// Stops the machine: nothing goes on without the protection that was asked for.
pub fn refuse(reason: &dyn Display) -> ! {
    report::fatal(format_args!("the saved protection state is refused: {reason}"))
}

/// The kernel has just been locked whole, by this vCPU.
pub fn at_lock<V: Vendor>(vcpu: &Vcpu<V>, memory: &mut Memory<V>) {
    let Some(saved) = state_to_restore() else { return };
    match apply(vcpu, memory, saved, Scope::Locked) {
        Ok(pages) => log!(
            "restored: the requested pins, {pages} locked pages; {} others wait for the kernel",
            waiting(memory, saved)
        ),
        Err(refusal) => refuse(&refusal),
    }
}

/// This vCPU has just been locked with `pins`.
pub fn vcpu_locked<V: Vendor>(vcpu: &Vcpu<V>, pins: &Pins) {
    let Some(saved) = state_to_restore() else { return };
    // Until the whole kernel is locked nothing is restored; then these pins are looked at, too.
    if vcpu.vm.stage() < Stage::Full {
        return;
    }
    if saved.settings.vcpus.get(vcpu.index).is_none_or(|saved| saved.as_ref() != Some(pins)) {
        refuse(&Difference::Vcpu(vcpu.index));
    }
    if let Err(refusal) = registers(vcpu, saved) {
        refuse(&refusal);
    }
}

/// Restores all pages, for a kernel that says that its memory is what it was when the state was
/// saved; 0, or a negative error: see [`abi::hypercall::RESTORE_STATE`].
pub fn on_request(vcpu: &mut Vcpu<impl Vendor>) -> u64 {
    let vm = vcpu.vm;
    let refused = |errno: u64| errno.wrapping_neg();
    if vcpu.cpl() != 0 {
        return refused(EPERM);
    }
    let Some(saved) = state_to_restore() else { return refused(ENOENT) };
    let mut memory = vm.memory.lock();
    if vm.stage() < Stage::Full {
        return refused(EAGAIN);
    }
    let outcome = apply(vcpu, &mut memory, saved, Scope::Whole);
    drop(memory);
    vcpu.request_flush();
    match outcome {
        Ok(pages) => {
            log!("restored, as the kernel asked: {pages} pages");
            0
        }
        Err(refusal) => {
            log!("the saved protection state is refused: {refusal}");
            refused(if matches!(refusal, Refusal::Unsupported(_)) { EOPNOTSUPP } else { EPERM })
        }
    }
}

/// Judges everything, then applies it; after a refusal nothing has changed.
#[inline(never)]
fn apply<V: Vendor>(
    vcpu: &Vcpu<V>,
    memory: &mut Memory<V>,
    saved: &Saved<'static>,
    scope: Scope,
) -> Result<u64, Refusal> {
    let vm = vcpu.vm;
    registers(vcpu, saved)?;
    let now = state::settings(vm, vm.frames());
    // A vCPU's pins are the values that its registers have: they are as saved, or never will be.
    let mut vcpus = now.vcpus.iter().zip(&saved.settings.vcpus);
    if let Some(index) = vcpus.position(|(now, saved)| now.is_some() && now != saved) {
        return Err(Difference::Vcpu(index).into());
    }
    let changed = restore(saved, &now, scope, &mut Pages { memory, vm, index: vcpu.index })?;
    for (register, pin) in [0, 4].into_iter().zip(saved.settings.requested) {
        vm.requested.add(register, pin);
    }
    Ok(changed)
}

/// Whether this vCPU's control registers are as the guest had them pinned.
fn registers(vcpu: &Vcpu<impl Vendor>, saved: &Saved<'_>) -> Result<(), Refusal> {
    for (register, pin) in [0, 4].into_iter().zip(saved.settings.requested) {
        if !pin.allows(vcpu.control_register(register)) {
            return Err(Refusal::Register(register));
        }
    }
    Ok(())
}

/// Pages of which something was withheld and that are not locked: what they held is not known here.
fn waiting<V: Vendor>(memory: &Memory<V>, saved: &Saved<'_>) -> u64 {
    let asked = saved.runs().filter(|(_, page)| !page.withheld.is_empty() || page.immutable);
    let locked = |frame| memory.state(frame).is_some_and(|state| state.is_locked());
    asked.map(|(run, _)| run.iter().filter(|frame| !locked(*frame)).count() as u64).sum()
}
