//! AMD SVM: enabling it, the vCPU and its world switch (APM chapter 15).
//!
//! GIF is clear from [`enable`] on, so the hypervisor is never interrupted, but while a task runs.

mod exits;
mod maps;
mod second_stage;
mod vcpu;

pub use maps::Maps;
pub use vcpu::Svm;

use crate::cpu::instructions::{cpuid, read_msr, write_msr};
use addr::Hpa;
use core::arch::{asm, global_asm};
use x86_defs::msr;
use x86_defs::svm::Vmcb;

global_asm!(include_str!("../cpu/registers.s"), include_str!("switch.s"), options(raw));

const FEATURES: u32 = 0x8000_0001;
const FEATURE_SVM: u32 = 1 << 2;
const SVM_FEATURES: u32 = 0x8000_000a;
const SVM_NESTED_PAGING: u32 = 1 << 0;
const SVM_GMET: u32 = 1 << 17;

/// Registers that are swapped by `switch.s`, which knows this layout.
#[repr(C)]
struct SwitchArea {
    /// General registers in the order of their encoding; RAX and RSP are in the VMCB.
    pub gpr: [u64; 16],
    xmm: [[u64; 2]; 16],
    vmcb: u64,
    host_state: u64,
}

impl SwitchArea {
    const fn new(vmcb: Hpa, host_state: Hpa) -> Self {
        Self { gpr: [0; 16], xmm: [[0; 2]; 16], vmcb: vmcb.raw(), host_state: host_state.raw() }
    }
}

unsafe extern "C" {
    fn svm_enter(area: *mut SwitchArea, vmcb: *mut Vmcb);
    fn svm_take_pending_nmi();
    fn svm_host_nmi();
}

/// Whether this CPU can run a guest.
///
/// # Errors
/// A sentence that says what is missing.
fn check_support() -> Result<(), &'static str> {
    if cpuid(0x8000_0000, 0).eax < SVM_FEATURES || cpuid(FEATURES, 0).ecx & FEATURE_SVM == 0 {
        return Err("this CPU has no SVM (AMD-V): nothing was started");
    }
    if read_msr(msr::VM_CR) & msr::vm_cr::SVMDIS != 0 {
        return Err("the firmware has disabled SVM: switch it on there; nothing was started");
    }
    if cpuid(SVM_FEATURES, 0).edx & SVM_NESTED_PAGING == 0 {
        return Err("this CPU has no nested paging: nothing was started");
    }
    Ok(())
}

/// Whether nested tables can tell user from supervisor execution: guest mode execute trap.
fn has_gmet() -> bool {
    cpuid(SVM_FEATURES, 0).edx & SVM_GMET != 0
}

/// Turns SVM on and closes the door to interrupts.
fn enable(host_save: Hpa) {
    let efer = read_msr(msr::EFER) | msr::efer::SVME;
    // SAFETY: SVME takes nothing away from running code; `check_support` has found SVM.
    unsafe { write_msr(msr::EFER, efer) };
    // SAFETY: the page is this CPU's own and nobody else's (APM 15.30.4).
    unsafe { write_msr(msr::VM_HSAVE_PA, host_save.raw()) };
    clear_global_interrupts();
}

/// Holds off interrupts of all kinds: clears GIF (APM 15.17).
fn clear_global_interrupts() {
    // SAFETY: with GIF clear nothing interrupts; no handler is missed since IF is clear too.
    unsafe { asm!("clgi", options(nomem, nostack)) };
}

/// Lets NMIs in, and at CPL 3 interrupts. INITs, too, but none is sent: the guest cannot, and the
/// hypervisor has started all CPUs.
fn set_global_interrupts() {
    // SAFETY: IF is clear; an NMI leads to a handler that only notes it, on a stack of its own.
    unsafe { asm!("stgi", options(nomem, nostack)) };
}

/// Stores the state that VMLOAD brings back after each exit: TR above all, for its IST stacks.
fn save_host_state(page: Hpa) {
    // SAFETY: VMSAVE writes the page at this physical address, which is this CPU's own.
    unsafe { asm!("vmsave rax", in("rax") page.raw(), options(nostack)) };
}
