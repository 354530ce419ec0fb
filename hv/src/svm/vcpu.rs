//! The vCPU on AMD: its control block and world switch.

use super::{
    Maps, SwitchArea, clear_global_interrupts, enable, save_host_state, set_global_interrupts,
    svm_enter, svm_host_nmi, svm_take_pending_nmi,
};
use crate::boot::Machine;
use crate::cpu::instructions::read_msr;
use crate::cpu::stack;
use crate::memory::pool::Block;
use crate::vendor::{Exception, Exit, HiddenMsr, Settings, SplitExecution, Start, Vendor};
use crate::vm::Ram;
use addr::{Gva, Hfn};
use mtrr::{MemoryType, MemoryTypes};
use paging::Npt;
use spin::Once;
use x86_decode::{Mode, Registers, Table};
use x86_defs::svm::{self, Segment, Vmcb, cr_write, event, exit, intercept1};
use x86_defs::{cr0, cr4, msr, msr::efer, msr::vm_cr, rflags, vector};

/// A vCPU on AMD SVM.
pub struct Svm {
    pub(super) area: SwitchArea,
    pub(super) vmcb: &'static mut Vmcb,
    index: usize,
    maps: Maps,
    /// The event to inject, in the form that VMRUN takes (APM 15.20); 0 for none.
    injection: u64,
    pub(super) nmi_blocked: bool,
}

static MACHINE: Once<Machine<Svm>> = Once::new();

/// What exits after the lock, besides writes of MSRs.
const CR_LOCKED: u16 = cr_write::CR0 | cr_write::CR4;
const TABLES_LOCKED: u32 =
    intercept1::IDTR_WRITE | intercept1::GDTR_WRITE | intercept1::LDTR_WRITE | intercept1::TR_WRITE;

/// The event whose delivery an exit interrupted, if any (APM 15.7.2).
fn interrupted(info: u64) -> u64 {
    if info & event::VALID == 0 {
        return 0;
    }
    // QEMU reports external interrupts as exceptions, which it then refuses to inject.
    let is_exception = info >> event::TYPE_SHIFT & 7 == event::TYPE_EXCEPTION;
    let is_interrupt_vector = info & 0xff >= 32;
    info & if is_exception && is_interrupt_vector { !(7 << event::TYPE_SHIFT) } else { !0 }
}

impl Svm {
    fn set_intercepts(&mut self, settings: &Settings<Self>) {
        let vmcb = &mut *self.vmcb;
        vmcb.intercept1 = intercept1::NMI
            | intercept1::INIT
            | intercept1::IOIO
            | intercept1::MSR
            | intercept1::SHUTDOWN;
        if settings.announce {
            vmcb.intercept1 |= intercept1::CPUID;
        }
        vmcb.intercept2 = svm::INTERCEPT2_SVM;
        vmcb.io_permission_map = self.maps.io.raw();
        vmcb.msr_permission_map = self.maps.msr_boot.raw();
        vmcb.asid = 1;
        vmcb.nested_control = svm::nested_control::ENABLE;
        if settings.split_execution {
            vmcb.nested_control |= svm::nested_control::GMET;
        }
        vmcb.nested_cr3 = settings.root.start().raw();
    }

    /// Lets a pending NMI in, on the hypervisor's own IDT.
    pub(super) fn take_pending_nmi(&mut self) {
        // SAFETY: the NMI gate leads to a handler that only notes the NMI, on a stack of its own.
        unsafe { svm_take_pending_nmi() };
        // The exit that it forced says so already.
        stack::nmi_was_seen(self.index);
    }

    fn msr_field(&mut self, number: u32) -> Option<&mut u64> {
        let vmcb = &mut *self.vmcb;
        Some(match number {
            msr::STAR => &mut vmcb.star,
            msr::LSTAR => &mut vmcb.lstar,
            msr::CSTAR => &mut vmcb.cstar,
            msr::SFMASK => &mut vmcb.sfmask,
            msr::SYSENTER_CS => &mut vmcb.sysenter_cs,
            msr::SYSENTER_ESP => &mut vmcb.sysenter_esp,
            msr::SYSENTER_EIP => &mut vmcb.sysenter_eip,
            _ => return None,
        })
    }
}

impl Vendor for Svm {
    type Table = Npt;
    type Maps = Maps;

    fn check_support() -> Result<(), &'static str> {
        super::check_support()
    }

    fn splits_execution() -> Option<SplitExecution> {
        super::has_gmet().then_some(SplitExecution::ByPrivilege)
    }

    /// Every leaf that is present can be read (APM 15.25.5).
    fn executes_unread() -> bool {
        false
    }

    fn memory_types(_ram: &Ram) -> Result<MemoryTypes, &'static str> {
        // Leaves have no types: one for all keeps them large.
        Ok(MemoryTypes::uniform(MemoryType::WriteBack))
    }

    /// An intercepted INIT stays pending and resets the CPU once it is outside of the guest (APM
    /// 15.13.4); QEMU does not intercept it at all.
    fn holds_against_init() -> bool {
        false
    }

    fn machine() -> &'static Once<Machine<Self>> {
        &MACHINE
    }

    fn nmi_handler() -> u64 {
        svm_host_nmi as *const () as u64
    }

    fn maps() -> Option<Maps> {
        Maps::new()
    }

    fn new(settings: &Settings<Self>) -> Result<Self, &'static str> {
        const NO_POOL: &str = "the pool is too small";
        let host_save = Block::take(1).ok_or(NO_POOL)?.start().start();
        let host_state = Block::take(1).ok_or(NO_POOL)?.start().start();
        let block = Block::take(1).ok_or(NO_POOL)?;
        let vmcb_address = block.start().start();
        let vmcb = block.leak_as::<Vmcb>().ok_or(NO_POOL)?;
        enable(host_save);
        save_host_state(host_state);
        let area = SwitchArea::new(vmcb_address, host_state);
        let mut vcpu = Self {
            area,
            vmcb,
            index: settings.index,
            maps: settings.maps,
            injection: 0,
            nmi_blocked: false,
        };
        vcpu.set_intercepts(settings);
        Ok(vcpu)
    }

    fn reset_to(&mut self, start: Start) {
        let flat =
            |selector, attributes| Segment { selector, attributes, limit: u32::MAX, base: 0 };
        let vmcb = &mut *self.vmcb;
        vmcb.cs = flat(0x10, 0xa9b);
        for segment in [&mut vmcb.es, &mut vmcb.ss, &mut vmcb.ds, &mut vmcb.fs, &mut vmcb.gs] {
            *segment = flat(0x18, 0xc93);
        }
        vmcb.gdtr = Segment { limit: 0x1f, base: start.gdt.raw(), ..Segment::default() };
        vmcb.idtr = Segment::default();
        vmcb.ldtr = Segment { attributes: 0x82, ..Segment::default() };
        vmcb.tr = Segment { attributes: 0x8b, limit: 0xffff, ..Segment::default() };
        vmcb.cpl = 0;
        vmcb.efer = efer::SVME | efer::LMA | efer::LME | efer::NXE;
        vmcb.cr0 = cr0::PG | cr0::ET | cr0::PE;
        vmcb.cr3 = start.tables.raw();
        vmcb.cr4 = cr4::PAE;
        vmcb.dr6 = 0xffff_0ff0;
        vmcb.dr7 = 0x400;
        vmcb.rflags = rflags::RESERVED;
        vmcb.rip = start.entry.raw();
        vmcb.rsp = start.stack.raw();
        // The reset value (APM 7.8.2), as firmware leaves it.
        vmcb.guest_pat = 0x0007_0406_0007_0406;
        vmcb.cr_write &= !CR_LOCKED;
        vmcb.intercept1 &= !(TABLES_LOCKED | intercept1::IRET | intercept1::VINTR);
        vmcb.msr_permission_map = self.maps.msr_boot.raw();
        vmcb.virtual_interrupt = 0;
        vmcb.interrupt_shadow = 0;
        self.injection = 0;
        self.nmi_blocked = false;
        self.area.gpr = [0; 16];
        self.set_gpr(6, start.rsi);
    }

    #[inline(always)]
    fn enter(&mut self, flush: bool) -> Exit {
        self.vmcb.tlb_control = if flush { svm::TLB_FLUSH_ALL } else { 0 };
        self.vmcb.event_injection = self.injection;
        // SAFETY: area and VMCB are this vCPU's, the addresses in the area are those of the VMCB
        // and of the page that `save_host_state` filled. The guest reaches nothing of the
        // hypervisor's but through the second stage, which does not map it.
        unsafe { svm_enter(&raw mut self.area, &raw mut *self.vmcb) };
        self.injection = interrupted(self.vmcb.exit_interrupt_info);
        self.exit_reason()
    }

    fn set_root(&mut self, root: Hfn) {
        self.vmcb.nested_cr3 = root.start().raw();
    }

    fn inject(&mut self, exception: Exception) {
        let exception = match exception {
            Exception::UndefinedOpcode => u64::from(vector::UD),
            Exception::GeneralProtection => u64::from(vector::GP) | event::ERROR_CODE,
        };
        self.injection = exception | event::TYPE_EXCEPTION << event::TYPE_SHIFT | event::VALID;
    }

    fn inject_nmi(&mut self) -> bool {
        let can = !self.nmi_blocked && self.injection == 0;
        if can {
            self.nmi_blocked = true;
            self.injection =
                u64::from(vector::NMI) | event::TYPE_NMI << event::TYPE_SHIFT | event::VALID;
            // The end of the handler opens the window.
            self.vmcb.intercept1 |= intercept1::IRET;
        }
        can
    }

    fn can_take_interrupt(&self) -> bool {
        self.injection == 0
            && self.vmcb.rflags & rflags::IF != 0
            && self.vmcb.interrupt_shadow & svm::INTERRUPT_SHADOW == 0
    }

    fn inject_interrupt(&mut self, vector: u8) {
        self.injection =
            u64::from(vector) | event::TYPE_INTERRUPT << event::TYPE_SHIFT | event::VALID;
    }

    /// By a virtual interrupt that is never delivered, since its delivery exits.
    fn request_interrupt_window(&mut self) {
        use svm::virtual_interrupt::{IGNORE_TPR, PENDING, PRIORITY};
        self.vmcb.virtual_interrupt = PENDING | PRIORITY | IGNORE_TPR;
        self.vmcb.intercept1 |= intercept1::VINTR;
    }

    fn accept_interrupts(&mut self, accept: bool) {
        if accept {
            set_global_interrupts();
        } else {
            clear_global_interrupts();
        }
    }

    /// Told for ports only: QEMU has no next-RIP save.
    fn instruction_length(&self) -> Option<u8> {
        let is_port = self.vmcb.exit_code & 0xffff_ffff == exit::IOIO;
        is_port.then(|| self.vmcb.exit_info2.wrapping_sub(self.vmcb.rip).to_le_bytes()[0])
    }

    fn advance(&mut self, length: u8) {
        let next = self.vmcb.rip.wrapping_add(u64::from(length));
        self.vmcb.rip = if self.mode() == Mode::Bits64 { next } else { next & 0xffff_ffff };
        self.vmcb.interrupt_shadow = 0;
        self.vmcb.rflags &= !rflags::RF;
    }

    fn gpr(&self, number: usize) -> u64 {
        match number {
            0 => self.vmcb.rax,
            4 => self.vmcb.rsp,
            _ => self.area.gpr.get(number).copied().unwrap_or(0),
        }
    }

    fn set_gpr(&mut self, number: usize, value: u64) {
        match number {
            0 => self.vmcb.rax = value,
            4 => self.vmcb.rsp = value,
            _ => {
                if let Some(register) = self.area.gpr.get_mut(number) {
                    *register = value;
                }
            }
        }
    }

    fn rip(&self) -> Gva {
        let base = if self.mode() == Mode::Bits64 { 0 } else { self.vmcb.cs.base };
        Gva::new(self.vmcb.rip.wrapping_add(base))
    }

    fn cpl(&self) -> u8 {
        self.vmcb.cpl
    }

    fn mode(&self) -> Mode {
        if self.vmcb.efer & efer::LMA != 0 && self.vmcb.cs.attributes & Segment::LONG != 0 {
            Mode::Bits64
        } else if self.vmcb.cs.attributes & Segment::DEFAULT_32 != 0 {
            Mode::Bits32
        } else {
            Mode::Bits16
        }
    }

    fn registers(&self) -> Registers {
        let mut gpr = self.area.gpr;
        gpr[0] = self.vmcb.rax;
        gpr[4] = self.vmcb.rsp;
        let vmcb = &*self.vmcb;
        let segments = [&vmcb.es, &vmcb.cs, &vmcb.ss, &vmcb.ds, &vmcb.fs, &vmcb.gs];
        Registers {
            gpr,
            rip: vmcb.rip,
            rflags: vmcb.rflags,
            segment_base: segments.map(|segment| segment.base),
            mode: self.mode(),
        }
    }

    fn control_register(&self, number: u8) -> u64 {
        match number {
            0 => self.vmcb.cr0,
            3 => self.vmcb.cr3,
            4 => self.vmcb.cr4,
            _ => 0,
        }
    }

    fn set_control_register(&mut self, number: u8, value: u64) {
        const KEEP_TRANSLATIONS: u64 = 1 << 63;
        match number {
            0 => self.vmcb.cr0 = value | cr0::ET,
            3 => self.vmcb.cr3 = value & !KEEP_TRANSLATIONS,
            4 => self.vmcb.cr4 = value,
            _ => {}
        }
    }

    fn efer(&self) -> u64 {
        self.vmcb.efer & !efer::SVME
    }

    fn set_efer(&mut self, value: u64) {
        self.vmcb.efer = value | efer::SVME;
    }

    fn msr(&self, number: u32) -> u64 {
        let vmcb = &*self.vmcb;
        match number {
            msr::STAR => vmcb.star,
            msr::LSTAR => vmcb.lstar,
            msr::CSTAR => vmcb.cstar,
            msr::SFMASK => vmcb.sfmask,
            msr::SYSENTER_CS => vmcb.sysenter_cs,
            msr::SYSENTER_ESP => vmcb.sysenter_esp,
            msr::SYSENTER_EIP => vmcb.sysenter_eip,
            other => read_msr(other),
        }
    }

    fn set_msr(&mut self, number: u32, value: u64) -> bool {
        let field = self.msr_field(number);
        let is_one = field.is_some();
        if let Some(field) = field {
            *field = value;
        }
        is_one
    }

    fn hidden_msr(number: u32) -> Option<HiddenMsr> {
        let (value, ignores_writes) = match number {
            // SVM looks disabled by the firmware. VM_CR is locked, and the rest does nothing
            // while it is.
            msr::VM_CR => (vm_cr::LOCK | vm_cr::SVMDIS, true),
            // Linux clears VM_HSAVE_PA on its way to a reboot.
            msr::IGNNE | msr::SVM_KEY | msr::VM_HSAVE_PA => (0, true),
            _ => return None,
        };
        Some(HiddenMsr { value: Some(value), ignores_writes })
    }

    fn table(&self, table: Table) -> (u64, u32) {
        let register = if table == Table::Gdtr { &self.vmcb.gdtr } else { &self.vmcb.idtr };
        (register.base, register.limit)
    }

    fn set_table(&mut self, table: Table, base: u64, limit: u32) {
        let vmcb = &mut *self.vmcb;
        let register = if table == Table::Gdtr { &mut vmcb.gdtr } else { &mut vmcb.idtr };
        (register.base, register.limit) = (base, limit);
    }

    fn selector(&self, table: Table) -> u16 {
        if table == Table::Ldtr { self.vmcb.ldtr.selector } else { self.vmcb.tr.selector }
    }

    fn lock(&mut self) {
        let vmcb = &mut *self.vmcb;
        vmcb.cr_write |= CR_LOCKED;
        vmcb.intercept1 |= TABLES_LOCKED;
        vmcb.msr_permission_map = self.maps.msr_locked.raw();
    }

    fn watch_address_space(&mut self, watch: bool) {
        if watch {
            self.vmcb.cr_write |= cr_write::CR3;
        } else {
            self.vmcb.cr_write &= !cr_write::CR3;
        }
    }
}
