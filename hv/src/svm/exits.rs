//! Exit codes in vendor-neutral terms (APM 15.7 to 15.15, appendix C).

use super::Svm;
use crate::vendor::{Access, Exit};
use addr::Gpa;
use x86_defs::svm::{exit, intercept1, nested_fault, port};

impl Svm {
    #[inline(always)]
    pub(super) fn exit_reason(&mut self) -> Exit {
        let vmcb = &*self.vmcb;
        // QEMU 7.2 fills the low half only.
        match vmcb.exit_code & 0xffff_ffff {
            exit::NESTED_FAULT => Exit::NestedFault(Access {
                gpa: Gpa::new(vmcb.exit_info2),
                present: vmcb.exit_info1 & nested_fault::PRESENT != 0,
                write: vmcb.exit_info1 & nested_fault::WRITE != 0,
                fetch: vmcb.exit_info1 & nested_fault::FETCH != 0,
                table_walk: vmcb.exit_info1 & nested_fault::TABLE_WALK != 0,
            }),
            exit::CPUID => Exit::Cpuid,
            exit::NMI => {
                self.take_pending_nmi();
                Exit::Nmi
            }
            exit::IRET => {
                // The guest leaves its NMI handler.
                self.nmi_blocked = false;
                self.vmcb.intercept1 &= !intercept1::IRET;
                Exit::NmiWindow
            }
            exit::VINTR => {
                self.vmcb.virtual_interrupt = 0;
                self.vmcb.intercept1 &= !intercept1::VINTR;
                Exit::InterruptWindow
            }
            exit::MSR => Exit::Msr { write: vmcb.exit_info1 & 1 == 1 },
            exit::WRITE_CR0 | exit::WRITE_CR3 | exit::WRITE_CR4 => Exit::ControlRegister,
            exit::WRITE_IDTR | exit::WRITE_GDTR | exit::WRITE_LDTR | exit::WRITE_TR => {
                Exit::DescriptorTable
            }
            exit::IOIO => Exit::Port {
                input: vmcb.exit_info1 & port::IN != 0,
                bytes: (vmcb.exit_info1 >> port::SIZE_SHIFT & 7).to_le_bytes()[0],
            },
            exit::VMMCALL => Exit::Hypercall,
            exit::VMRUN..=exit::SKINIT => Exit::VirtualizationInstruction,
            exit::INIT => Exit::Init,
            exit::SHUTDOWN => Exit::TripleFault,
            reason => Exit::Failed { reason, detail: [vmcb.exit_info1, vmcb.exit_info2] },
        }
    }
}
