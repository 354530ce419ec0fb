//! The pinned values of one vCPU, captured at the lock.

use crate::vendor::Vendor;
use integrity::pins::{ControlPin, MsrPins, SelectorPin, TablePin, cr0_pin, cr4_pin, efer_pin};
use x86_decode::Table;

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
    pub fn capture(vcpu: &impl Vendor) -> Self {
        let table = |name| {
            let (base, limit) = vcpu.table(name);
            TablePin { base, limit }
        };
        Self {
            cr0: cr0_pin(vcpu.control_register(0)),
            cr4: cr4_pin(vcpu.control_register(4)),
            efer: efer_pin(vcpu.efer()),
            msrs: MsrPins::capture(|number| vcpu.msr(number)),
            gdtr: table(Table::Gdtr),
            idtr: table(Table::Idtr),
            ldtr: SelectorPin { selector: vcpu.selector(Table::Ldtr) },
            tr: SelectorPin { selector: vcpu.selector(Table::Tr) },
        }
    }
}
