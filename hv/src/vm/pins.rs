//! The pinned values of one vCPU, captured at the lock.

use crate::cpu::instructions::read_msr;
use crate::svm::Vcpu;
use integrity::pins::{ControlPin, MsrPins, SelectorPin, TablePin, cr0_pin, cr4_pin, efer_pin};
use x86_defs::msr;

/// All pins of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Pins {
    /// CR0.
    pub cr0: ControlPin,
    /// CR4.
    pub cr4: ControlPin,
    /// EFER as the guest sees it.
    pub efer: ControlPin,
    /// System call entry points and the APIC's place.
    pub msrs: MsrPins,
    /// GDTR.
    pub gdtr: TablePin,
    /// IDTR.
    pub idtr: TablePin,
    /// LDTR.
    pub ldtr: SelectorPin,
    /// TR.
    pub tr: SelectorPin,
}

impl Pins {
    /// Pins the vCPU's registers at their present values.
    pub fn capture(vcpu: &Vcpu) -> Self {
        let vmcb = vcpu.vmcb();
        Self {
            cr0: cr0_pin(vmcb.cr0),
            cr4: cr4_pin(vmcb.cr4),
            efer: efer_pin(vcpu.guest_efer()),
            msrs: MsrPins::capture(|number| match number {
                msr::STAR => vmcb.star,
                msr::LSTAR => vmcb.lstar,
                msr::CSTAR => vmcb.cstar,
                msr::SFMASK => vmcb.sfmask,
                msr::SYSENTER_CS => vmcb.sysenter_cs,
                msr::SYSENTER_ESP => vmcb.sysenter_esp,
                msr::SYSENTER_EIP => vmcb.sysenter_eip,
                other => read_msr(other),
            }),
            gdtr: TablePin { base: vmcb.gdtr.base, limit: vmcb.gdtr.limit },
            idtr: TablePin { base: vmcb.idtr.base, limit: vmcb.idtr.limit },
            ldtr: SelectorPin { selector: vmcb.ldtr.selector },
            tr: SelectorPin { selector: vmcb.tr.selector },
        }
    }
}
