//! What to do at each exit.

use super::{cpuid, descriptor, fault, hypercall, registers, violation, xcr0};
use crate::cpu::instructions;
use crate::log;
use crate::report;
use crate::vcpu::Vcpu;
use crate::vendor::{Exception, Exit, Vendor};
use abi::event::ViolationKind;
use abi::hypercall::Counter;
use x86_decode::SimpleOp;

/// Handles an exit: after it the guest goes on. Inlined, so that the kinds that the vendor tells
/// apart are not told apart again.
#[inline(always)]
pub fn handle(vcpu: &mut Vcpu<impl Vendor>, exit: Exit) {
    let shared = vcpu.shared();
    match exit {
        Exit::Cpuid => {
            shared.count(Counter::Cpuid);
            answer_cpuid(vcpu);
        }
        Exit::NestedFault(access) => fault::handle(vcpu, access),
        Exit::Nmi => {
            shared.count(Counter::Nmi);
            vcpu.take_nmi();
        }
        Exit::NmiWindow => shared.count(Counter::Nmi),
        // Tasks run before the next entry.
        Exit::InterruptWindow => shared.count(Counter::Task),
        Exit::Msr { write } => {
            shared.count(Counter::Msr);
            registers::msr(vcpu, write);
        }
        Exit::ControlRegister => {
            shared.count(Counter::ControlRegister);
            registers::control(vcpu);
        }
        Exit::DescriptorTable => {
            shared.count(Counter::DescriptorTable);
            descriptor::access(vcpu);
        }
        Exit::Port { input, bytes } => {
            shared.count(Counter::Port);
            hidden_port(vcpu, input, bytes);
        }
        Exit::Hypercall => {
            shared.count(Counter::Hypercall);
            if vcpu.advance_over(SimpleOp::Vmmcall) {
                hypercall::handle(vcpu);
            }
        }
        other => {
            shared.count(Counter::Other);
            rare(vcpu, other);
        }
    }
}

#[cold]
fn rare(vcpu: &mut Vcpu<impl Vendor>, exit: Exit) {
    match exit {
        Exit::VirtualizationInstruction => vcpu.inject(Exception::UndefinedOpcode),
        Exit::TaskSwitch => vcpu.inject(Exception::GeneralProtection),
        Exit::Xsetbv => xcr0::set(vcpu),
        Exit::Invd => {
            // Dropping what others have written and not yet stored would be no cache maintenance.
            instructions::write_back_caches();
            let _ = vcpu.advance_over(SimpleOp::Invd);
        }
        Exit::Init | Exit::Startup => {
            violation::report_without_address(vcpu, ViolationKind::CpuEscape);
        }
        Exit::TripleFault => {
            log!(
                "vCPU {}: triple fault at {:#x}; the machine resets",
                vcpu.index,
                vcpu.rip().raw()
            );
            report::reset()
        }
        Exit::Failed { reason, detail: [first, second] } => report::fatal(format_args!(
            "vCPU {}: exit {reason:#x} (info {first:#x}, {second:#x}) at {:#x} is not expected",
            vcpu.index,
            vcpu.rip().raw()
        )),
        // Handled by the caller.
        _ => {}
    }
}

fn answer_cpuid<V: Vendor>(vcpu: &mut Vcpu<V>) {
    if !vcpu.advance_over_cpuid() {
        return;
    }
    let (leaf, subleaf) =
        (instructions::low_half(vcpu.gpr(0)), instructions::low_half(vcpu.gpr(1)));
    let answer = cpuid::answer(leaf, subleaf, vcpu.vm.policy.announce, || vcpu.control_register(4));
    vcpu.set_gpr(0, u64::from(answer.eax));
    vcpu.set_gpr(3, u64::from(answer.ebx));
    vcpu.set_gpr(1, u64::from(answer.ecx));
    vcpu.set_gpr(2, u64::from(answer.edx));
}

/// A port that the guest must not see: reads as ones, writes are lost.
#[inline(never)]
fn hidden_port(vcpu: &mut Vcpu<impl Vendor>, input: bool, bytes: u8) {
    if input {
        let bits = u32::from(bytes) * 8;
        let mask = if bits >= 32 { 0xffff_ffff } else { (1 << bits) - 1 };
        vcpu.set_gpr(0, vcpu.gpr(0) | mask);
    }
    // Both vendors tell the length of this instruction.
    if let Some(length) = vcpu.instruction_length() {
        vcpu.advance(length);
    }
}
