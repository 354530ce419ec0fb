//! Registers that the hypervisor loads for the guest after it has checked the values.

use super::Vcpu;
use x86_decode::Table;
use x86_defs::{cr0, msr, msr::efer};

impl Vcpu {
    /// Loads CR0, CR3 or CR4 and forgets all translations, as some changes demand.
    pub fn set_control_register(&mut self, number: u8, value: u64) {
        const KEEP_TRANSLATIONS: u64 = 1 << 63;
        match number {
            0 => self.vmcb.cr0 = value | cr0::ET,
            3 => self.vmcb.cr3 = value & !KEEP_TRANSLATIONS,
            4 => self.vmcb.cr4 = value,
            _ => {}
        }
        self.request_flush();
    }

    /// Loads EFER with the value that the guest wants to see.
    pub fn set_efer(&mut self, value: u64) {
        self.vmcb.efer = value | efer::SVME;
        self.request_flush();
    }

    /// Loads one of the MSRs that the control block holds; says whether it is one.
    pub fn set_msr(&mut self, number: u32, value: u64) -> bool {
        let vmcb = &mut *self.vmcb;
        let register = match number {
            msr::STAR => &mut vmcb.star,
            msr::LSTAR => &mut vmcb.lstar,
            msr::CSTAR => &mut vmcb.cstar,
            msr::SFMASK => &mut vmcb.sfmask,
            msr::SYSENTER_CS => &mut vmcb.sysenter_cs,
            msr::SYSENTER_ESP => &mut vmcb.sysenter_esp,
            msr::SYSENTER_EIP => &mut vmcb.sysenter_eip,
            _ => return false,
        };
        *register = value;
        true
    }

    /// Loads GDTR or IDTR.
    pub fn set_table(&mut self, table: Table, base: u64, limit: u32) {
        let register = match table {
            Table::Gdtr => &mut self.vmcb.gdtr,
            Table::Idtr => &mut self.vmcb.idtr,
            Table::Ldtr | Table::Tr => return,
        };
        (register.base, register.limit) = (base, limit);
    }
}
