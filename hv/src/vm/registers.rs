//! Control registers and MSRs: intercepted writes, judged by the pins.
//!
//! A value that breaks a pin is a violation; one that just the CPU would refuse becomes #GP without an
//! event, as on bare hardware. A bad value must never reach the control block, where it would make VMRUN
//! fail.

use super::lock;
use super::violation::{Attempt, is_let_through};
use crate::cpu::instructions::{cpuid, low_half, read_msr};
use crate::vcpu::Vcpu;
use crate::vendor::{Exception, Vendor};
use abi::event::ViolationKind;
use addr::Gva;
use x86_decode::{Operation, Selector, SimpleOp};
use x86_defs::msr::efer;
use x86_defs::{cr0, cr4, msr};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;

pub(super) fn attempt(kind: ViolationKind, register: u32, old: u64, new: u64) -> Attempt {
    Attempt { register: Some(register), size: 8, old, new, ..Attempt::new(kind) }
}

/// A write of CR0, CR3 or CR4, or LMSW or CLTS.
pub fn control(vcpu: &mut Vcpu<impl Vendor>) {
    let Some(instruction) = super::guest::fetch(vcpu) else { return };
    let (register, value) = match instruction.operation {
        Operation::MoveToControl { register, gpr } => (register, vcpu.gpr(usize::from(gpr))),
        Operation::LoadMachineStatus { value } => {
            let Some(low) = selector(vcpu, value) else { return };
            // LMSW loads the low four bits and cannot clear PE (APM volume 3, LMSW).
            let old = vcpu.control_register(0);
            (0, old & !0xe | u64::from(low) & 0xf | old & cr0::PE)
        }
        Operation::ClearTaskSwitched => (0, vcpu.control_register(0) & !cr0::TS),
        // Another CPU has just changed the instruction: the guest meets the new one.
        _ => return,
    };
    let old = vcpu.control_register(register);
    let legal = match register {
        0 => {
            value >> 32 == 0
                && (value & cr0::PG == 0 || value & cr0::PE != 0)
                && value & NOT_WRITE_THROUGH == 0
        }
        4 => value & !supported_cr4() == 0 && pcid_is_legal(vcpu, value),
        _ => true,
    };
    let pin = vcpu.pins.as_ref().map(|pins| if register == 0 { pins.cr0 } else { pins.cr4 });
    let locked = if register == 3 { 0 } else { pin.map_or(0, |pin| pin.broken_by(value)) };
    let broken = locked | vcpu.vm.requested.pin(register).broken_by(value);
    if broken != 0 {
        let attempt = attempt(ViolationKind::ControlRegister, u32::from(register), old, value);
        if !is_let_through(vcpu, attempt) {
            return;
        }
    }
    if !legal {
        return vcpu.inject(Exception::GeneralProtection);
    }
    vcpu.set_control_register(register, value);
    vcpu.advance(instruction.length);
    if register == 3 {
        lock::look_at_rodata(vcpu);
    }
}

/// CR0.NW: with caches on it is refused by the CPU, and no kernel sets it.
const NOT_WRITE_THROUGH: u64 = 1 << 29;

/// PCIDE can be set only while the low bits of CR3 are clear (APM 5.5.1).
fn pcid_is_legal(vcpu: &Vcpu<impl Vendor>, value: u64) -> bool {
    const PCIDE: u64 = 1 << 17;
    value & PCIDE == 0
        || vcpu.control_register(4) & PCIDE != 0
        || vcpu.control_register(3) & 0xfff == 0
}

/// The CR4 bits that this CPU knows.
fn supported_cr4() -> u64 {
    let basic = cpuid(1, 0);
    let extended = cpuid(7, 0);
    let bit = |present: u32, bit: u64| if present != 0 { bit } else { 0 };
    // VME to OSXMMEXCPT: every CPU with SVM has them.
    0x7ff
        | bit(extended.ecx & 1 << 2, cr4::UMIP)
        | bit(extended.ecx & 1 << 16, cr4::LA57)
        | bit(extended.ebx & 1 << 0, cr4::FSGSBASE)
        | bit(basic.ecx & 1 << 17, 1 << 17)
        | bit(basic.ecx & 1 << 26, cr4::OSXSAVE)
        | bit(extended.ebx & 1 << 7, cr4::SMEP)
        | bit(extended.ebx & 1 << 20, cr4::SMAP)
        | bit(extended.ecx & 1 << 3, cr4::PKE)
        | bit(extended.ecx & 1 << 7, cr4::CET)
}

/// RDMSR or WRMSR of an intercepted register.
pub fn msr<V: Vendor>(vcpu: &mut Vcpu<V>, is_write: bool) {
    let number = low_half(vcpu.gpr(RCX));
    if is_write {
        let value = vcpu.gpr(RDX) << 32 | u64::from(low_half(vcpu.gpr(RAX)));
        if write_msr(vcpu, number, value) {
            let _ = vcpu.advance_over(SimpleOp::WriteMsr);
        }
        return;
    }
    let value = match number {
        msr::EFER => Some(vcpu.efer()),
        // Others than the hidden ones are outside the ranges that the CPU defines.
        other => V::hidden_msr(other).and_then(|hidden| hidden.value),
    };
    let Some(value) = value else { return vcpu.inject(Exception::GeneralProtection) };
    if vcpu.advance_over(SimpleOp::ReadMsr) {
        vcpu.set_gpr(RAX, value & 0xffff_ffff);
        vcpu.set_gpr(RDX, value >> 32);
    }
}

/// Performs a write or refuses it; says whether the guest goes on behind the instruction.
fn write_msr<V: Vendor>(vcpu: &mut Vcpu<V>, number: u32, value: u64) -> bool {
    if number == msr::EFER {
        return write_efer(vcpu, value);
    }
    if V::hidden_msr(number).is_some_and(|hidden| hidden.ignores_writes) {
        return true;
    }
    let pinned = match (&vcpu.pins, number) {
        (Some(pins), _) => pins.msrs.pinned(number),
        // The hypervisor relies on the APIC's place from the start.
        (None, msr::APIC_BASE) => Some(read_msr(number)),
        (None, _) => None,
    };
    match pinned {
        Some(pinned) if pinned == value => {
            // The register may hold another value that a policy of `log` let through.
            let _ = vcpu.set_msr(number, value);
            true
        }
        Some(pinned) => {
            let attempt = attempt(ViolationKind::Msr, number, pinned, value);
            if !is_let_through(vcpu, attempt) {
                return false;
            }
            if number == msr::APIC_BASE || !vcpu.set_msr(number, value) {
                vcpu.inject(Exception::GeneralProtection);
                return false;
            }
            true
        }
        None => {
            vcpu.inject(Exception::GeneralProtection);
            false
        }
    }
}

fn write_efer(vcpu: &mut Vcpu<impl Vendor>, value: u64) -> bool {
    const FAST_FXSAVE: u64 = 1 << 14;
    const HAS_FAST_FXSAVE: u32 = 1 << 25;
    let fast = if cpuid(0x8000_0001, 0).edx & HAS_FAST_FXSAVE != 0 { FAST_FXSAVE } else { 0 };
    let old = vcpu.efer();
    // LMA is the CPU's to set; writes of it are ignored (APM 3.1.7).
    let value = value & !efer::LMA | old & efer::LMA;
    if let Some(pins) = vcpu.pins
        && !pins.efer.allows(value)
    {
        let attempt = attempt(ViolationKind::Msr, msr::EFER, old, value);
        if !is_let_through(vcpu, attempt) {
            return false;
        }
    }
    let known = efer::SCE | efer::LME | efer::LMA | efer::NXE | fast;
    let paging = vcpu.paging_levels().is_some();
    if value & !known != 0 || (paging && (value ^ old) & efer::LME != 0) {
        vcpu.inject(Exception::GeneralProtection);
        return false;
    }
    vcpu.set_efer(value);
    true
}

/// Value of a 16-bit operand.
pub(super) fn selector(vcpu: &Vcpu<impl Vendor>, operand: Selector) -> Option<u16> {
    match operand {
        Selector::Register(value) => Some(value),
        Selector::Memory(address) => {
            let mut bytes = [0; 2];
            super::guest::read(vcpu, Gva::new(address), &mut bytes)?;
            Some(u16::from_le_bytes(bytes))
        }
    }
}
