//! What to do at each exit (APM 15.7 to 15.15, appendix C).

use super::{EventInjection, Vcpu};
use crate::cpu::instructions::low_half;
use crate::log;
use crate::report;
use crate::vm::{fault, hypercall, registers, violation};
use abi::event::ViolationKind;
use abi::hypercall::Counter;
use addr::Gpa;
use x86_decode::SimpleOp;
use x86_defs::svm::{exit, nested_fault, port};

impl Vcpu {
    pub(super) fn handle_exit(&mut self) {
        // QEMU 7.2 fills the low half only.
        let code = self.vmcb.exit_code & 0xffff_ffff;
        match code {
            exit::NESTED_FAULT => self.nested_fault(),
            exit::CPUID => {
                self.shared.count(Counter::Cpuid);
                self.cpuid();
            }
            exit::NMI => {
                self.shared.count(Counter::Nmi);
                self.take_nmi();
            }
            exit::IRET => {
                self.shared.count(Counter::Nmi);
                self.nmi_handler_ends();
            }
            exit::MSR => {
                self.shared.count(Counter::Msr);
                registers::msr(self, self.vmcb.exit_info1 & 1 == 1);
            }
            exit::WRITE_CR0 | exit::WRITE_CR3 | exit::WRITE_CR4 => {
                self.shared.count(Counter::ControlRegister);
                registers::control(self);
            }
            exit::WRITE_IDTR | exit::WRITE_GDTR | exit::WRITE_LDTR | exit::WRITE_TR => {
                self.shared.count(Counter::DescriptorTable);
                registers::descriptor_table(self);
            }
            exit::IOIO => {
                self.shared.count(Counter::Port);
                self.hidden_port();
            }
            exit::VMMCALL => {
                self.shared.count(Counter::Hypercall);
                if self.advance_over(SimpleOp::Vmmcall) {
                    hypercall::handle(self);
                }
            }
            exit::VMRUN..=exit::SKINIT => {
                self.shared.count(Counter::Other);
                self.inject(EventInjection::UNDEFINED_OPCODE);
            }
            exit::INIT => {
                self.shared.count(Counter::Other);
                violation::report_without_address(self, ViolationKind::CpuEscape);
            }
            exit::SHUTDOWN => {
                log!(
                    "vCPU {}: triple fault at {:#x}; the machine resets",
                    self.index,
                    self.vmcb.rip
                );
                report::reset()
            }
            _ => report::fatal(format_args!(
                "vCPU {}: exit {:#x} (info {:#x}, {:#x}) at {:#x} is not expected",
                self.index,
                self.vmcb.exit_code,
                self.vmcb.exit_info1,
                self.vmcb.exit_info2,
                self.vmcb.rip
            )),
        }
    }

    fn nested_fault(&mut self) {
        let info = self.vmcb.exit_info1;
        let access = fault::Access {
            gpa: Gpa::new(self.vmcb.exit_info2),
            present: info & nested_fault::PRESENT != 0,
            fetch: info & nested_fault::FETCH != 0,
            table_walk: info & nested_fault::TABLE_WALK != 0,
        };
        fault::handle(self, access);
    }

    /// CPUID, intercepted only when the policy wants Ravelin announced.
    fn cpuid(&mut self) {
        // Without the CPU's help the length must be read from guest memory; a place seen before
        // is not read again. A guest that changes it there misleads itself only.
        let rip = self.vmcb.rip;
        let slot = (rip >> 1) as usize % self.cpuid_at.len();
        if self.cpuid_at.get(slot) == Some(&rip) {
            self.advance(2);
        } else if self.advance_over(SimpleOp::Cpuid) {
            if let (Some(slot), 2) = (self.cpuid_at.get_mut(slot), self.vmcb.rip.wrapping_sub(rip))
            {
                *slot = rip;
            }
        } else {
            return;
        }
        let (leaf, subleaf) = (low_half(self.gpr(0)), low_half(self.gpr(1)));
        let answer = crate::vm::cpuid::answer(leaf, subleaf, self.vmcb.cr4);
        self.vmcb.rax = u64::from(answer.eax);
        self.area.gpr[3] = u64::from(answer.ebx);
        self.area.gpr[1] = u64::from(answer.ecx);
        self.area.gpr[2] = u64::from(answer.edx);
    }

    /// A port that the guest must not see: reads as ones, writes are lost.
    fn hidden_port(&mut self) {
        if self.vmcb.exit_info1 & port::IN != 0 {
            let bits = self.vmcb.exit_info1 >> 4 & 7;
            let mask = if bits == 4 { 0xffff_ffff } else { (1 << (8 * bits)) - 1 };
            self.vmcb.rax |= mask;
        }
        let next = self.vmcb.exit_info2;
        let length = next.wrapping_sub(self.vmcb.rip).to_le_bytes()[0];
        self.advance(length);
    }

    /// Steps over the instruction at RIP if it is `expected`. If it is not (another CPU has just
    /// changed it), nothing happens and the guest meets the new one.
    pub(crate) fn advance_over(&mut self, expected: SimpleOp) -> bool {
        match crate::vm::guest::fetch(self) {
            Some(instruction)
                if instruction.operation == x86_decode::Operation::Simple(expected) =>
            {
                self.advance(instruction.length);
                true
            }
            _ => false,
        }
    }
}
