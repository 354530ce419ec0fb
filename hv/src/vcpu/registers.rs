//! The guest's registers, as the code above the vendor uses them.

use super::Vcpu;
use crate::vendor::Vendor;
use addr::Gva;
use x86_decode::{Registers, Table};
use x86_defs::{cr0, cr4};

impl<V: Vendor> Vcpu<V> {
    /// General register by its encoding, 0 to 15.
    pub fn gpr(&self, number: usize) -> u64 {
        self.vendor.gpr(number)
    }

    /// Sets a general register.
    pub fn set_gpr(&mut self, number: usize, value: u64) {
        self.vendor.set_gpr(number, value);
    }

    /// Address of the instruction that exited.
    pub fn rip(&self) -> Gva {
        self.vendor.rip()
    }

    /// Length of the instruction that exited, where the CPU tells.
    pub fn instruction_length(&self) -> Option<u8> {
        self.vendor.instruction_length()
    }

    /// Steps over an instruction of `length` bytes.
    pub fn advance(&mut self, length: u8) {
        self.vendor.advance(length);
    }

    /// Privilege level.
    pub fn cpl(&self) -> u8 {
        self.vendor.cpl()
    }

    /// All that the decoder wants to know.
    pub fn registers(&self) -> Registers {
        self.vendor.registers()
    }

    /// CR0, CR3, CR4 by number; 0 for others.
    pub fn control_register(&self, number: u8) -> u64 {
        self.vendor.control_register(number)
    }

    /// Loads CR0, CR3 or CR4 and forgets all translations, as some changes demand.
    pub fn set_control_register(&mut self, number: u8, value: u64) {
        self.vendor.set_control_register(number, value);
        self.request_flush();
    }

    /// EFER as the guest sees it.
    pub fn efer(&self) -> u64 {
        self.vendor.efer()
    }

    /// Loads EFER with the value that the guest wants to see.
    pub fn set_efer(&mut self, value: u64) {
        self.vendor.set_efer(value);
        self.request_flush();
    }

    /// One of the pinned MSRs.
    pub fn msr(&self, number: u32) -> u64 {
        self.vendor.msr(number)
    }

    /// Loads one of the pinned MSRs; says whether it took the value.
    pub fn set_msr(&mut self, number: u32, value: u64) -> bool {
        self.vendor.set_msr(number, value)
    }

    /// Base and limit of GDTR or IDTR.
    pub fn table(&self, table: Table) -> (u64, u32) {
        self.vendor.table(table)
    }

    /// Loads GDTR or IDTR.
    pub fn set_table(&mut self, table: Table, base: u64, limit: u32) {
        self.vendor.set_table(table, base, limit);
    }

    /// Selector of LDTR or TR.
    pub fn selector(&self, table: Table) -> u16 {
        self.vendor.selector(table)
    }

    /// Number of levels of the guest's page tables; `None` while paging is off.
    pub fn paging_levels(&self) -> Option<u8> {
        let paging = self.control_register(0) & cr0::PG != 0;
        let five = self.control_register(4) & cr4::LA57 != 0;
        paging.then_some(if five { 5 } else { 4 })
    }
}
