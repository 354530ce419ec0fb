//! Exit reasons in vendor-neutral terms (SDM 3C, 28.2; appendix C).

use super::Vmx;
use super::instructions::{vmread, vmwrite};
use crate::vendor::{Access, Exit};
use addr::Gpa;
use x86_defs::vmx::{ept_violation, event, exit, field, interruptibility, port, primary};

impl Vmx {
    #[inline(always)]
    pub(super) fn exit_reason(&mut self) -> Exit {
        match vmread(field::EXIT_REASON) {
            exit::CPUID => Exit::Cpuid,
            exit::EPT_VIOLATION => Exit::NestedFault(self.access()),
            // No exception is intercepted.
            exit::EXCEPTION_OR_NMI => Exit::Nmi,
            exit::TIMER => {
                // Set by the handler of an NMI that hit the hypervisor. Another one between here
                // and the answer to this merges with it, as two pending NMIs do.
                self.set_pin_controls();
                Exit::Nmi
            }
            exit::NMI_WINDOW => {
                self.change_primary(primary::NMI_WINDOW_EXITING, false);
                Exit::NmiWindow
            }
            exit::INTERRUPT_WINDOW => {
                self.change_primary(primary::INTERRUPT_WINDOW_EXITING, false);
                Exit::InterruptWindow
            }
            exit::RDMSR => Exit::Msr { write: false },
            exit::WRMSR => Exit::Msr { write: true },
            exit::CONTROL_REGISTER => Exit::ControlRegister,
            exit::GDTR_IDTR | exit::LDTR_TR => Exit::DescriptorTable,
            exit::IO => {
                let qualification = vmread(field::QUALIFICATION);
                Exit::Port {
                    input: qualification & port::IN != 0,
                    bytes: (qualification & port::SIZE_MASK).to_le_bytes()[0] + 1,
                }
            }
            exit::VMCALL => Exit::Hypercall,
            exit::VMCLEAR..=exit::VMXON
            | exit::GETSEC
            | exit::INVEPT
            | exit::INVVPID
            | exit::VMFUNC => Exit::VirtualizationInstruction,
            exit::XSETBV => Exit::Xsetbv,
            exit::INVD => Exit::Invd,
            exit::TASK_SWITCH => Exit::TaskSwitch,
            exit::INIT => Exit::Init,
            exit::SIPI => Exit::Startup,
            exit::TRIPLE_FAULT => Exit::TripleFault,
            reason => Exit::Failed {
                reason,
                detail: [vmread(field::QUALIFICATION), vmread(field::INSTRUCTION_ERROR)],
            },
        }
    }

    /// The rights that are reported are those of the entry, but one CPU model or another gets the
    /// user-execute bit wrong; that something was allowed is all that is used.
    fn access(&self) -> Access {
        let qualification = vmread(field::QUALIFICATION);
        if qualification & ept_violation::NMI_UNBLOCKED != 0 && !self.interrupted_delivery() {
            // The IRET that ends an NMI handler will be executed again.
            let state = vmread(field::INTERRUPTIBILITY);
            vmwrite(field::INTERRUPTIBILITY, state | interruptibility::BLOCKED_BY_NMI);
        }
        let walk = ept_violation::LINEAR | ept_violation::FINAL;
        Access {
            gpa: Gpa::new(vmread(field::GUEST_PHYSICAL_ADDRESS)),
            present: qualification & ept_violation::PRESENT != 0,
            write: qualification & ept_violation::WRITE != 0,
            fetch: qualification & ept_violation::FETCH != 0,
            table_walk: qualification & walk == ept_violation::LINEAR,
        }
    }

    /// Takes over the event whose delivery the exit interrupted, to deliver it again (SDM 3C,
    /// 28.2.4, 27.8.3 in older editions).
    #[inline]
    pub(super) fn requeue_interrupted(&mut self) {
        let info = vmread(field::VECTORING_EVENT);
        if info & event::VALID != 0 {
            self.requeue(info);
        }
    }

    #[cold]
    fn requeue(&mut self, info: u64) {
        if info >> event::TYPE_SHIFT & 7 == event::TYPE_NMI {
            let state = vmread(field::INTERRUPTIBILITY);
            vmwrite(field::INTERRUPTIBILITY, state & !interruptibility::BLOCKED_BY_NMI);
        }
        vmwrite(field::ENTRY_ERROR_CODE, vmread(field::VECTORING_ERROR_CODE));
        vmwrite(field::ENTRY_INSTRUCTION_LENGTH, vmread(field::INSTRUCTION_LENGTH));
        self.queue(info & !event::UNDEFINED);
    }
}
