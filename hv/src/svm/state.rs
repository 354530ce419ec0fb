//! The vCPU: its control block, registers, and what the VM-independent code may do with them.

use super::{Maps, SwitchArea, enable, save_host_state, svm_enter, svm_take_pending_nmi};
use crate::cpu::{self, CpuShared};
use crate::memory::physical::Physical;
use crate::memory::pool::Block;
use crate::memory::window::Windows;
use crate::vm::{Vm, pins::Pins};
use addr::{Gpa, Gva};
use core::sync::atomic::Ordering;
use integrity::state::View;
use x86_decode::{Mode, Registers};
use x86_defs::svm::{self, Segment, Vmcb, cr_write, event, intercept1};
use x86_defs::{cr0, cr4, msr::efer, rflags, vector};

/// An event for the guest, in the form that VMRUN takes (APM 15.20).
#[derive(Clone, Copy, Debug)]
pub struct EventInjection(u64);

impl EventInjection {
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self(
        vector::GP as u64
            | event::TYPE_EXCEPTION << event::TYPE_SHIFT
            | event::ERROR_CODE
            | event::VALID,
    );
    /// #UD.
    pub const UNDEFINED_OPCODE: Self =
        Self(vector::UD as u64 | event::TYPE_EXCEPTION << event::TYPE_SHIFT | event::VALID);
    const NMI: Self =
        Self(vector::NMI as u64 | event::TYPE_NMI << event::TYPE_SHIFT | event::VALID);

    /// The event whose delivery an exit interrupted, if any (APM 15.7.2).
    fn interrupted(info: u64) -> Option<Self> {
        if info & event::VALID == 0 {
            return None;
        }
        // QEMU reports external interrupts as exceptions, which it then refuses to inject.
        let is_exception = info >> event::TYPE_SHIFT & 7 == event::TYPE_EXCEPTION;
        let is_interrupt_vector = info & 0xff >= 32;
        let mask = if is_exception && is_interrupt_vector { !(7 << event::TYPE_SHIFT) } else { !0 };
        Some(Self(info & mask))
    }
}

/// A vCPU and the CPU that runs it.
pub struct Vcpu {
    pub(super) area: SwitchArea,
    pub(super) vmcb: &'static mut Vmcb,
    /// Index of the CPU, and of the vCPU in its VM.
    pub index: usize,
    /// The VM.
    pub vm: &'static Vm,
    /// This CPU's windows.
    pub windows: Windows,
    /// The pins, once this vCPU is locked.
    pub pins: Option<Pins>,
    pub(super) maps: Maps,
    pub(super) injection: Option<EventInjection>,
    pub(super) view: View,
    pub(super) flush: bool,
    pub(super) nmi_waiting: bool,
    pub(super) nmi_blocked: bool,
    pub(super) cpuid_at: [u64; 16],
    pub(super) shared: &'static CpuShared,
}

impl Vcpu {
    /// Takes the calling CPU, enables SVM on it and prepares a vCPU that does not run yet.
    pub fn new(index: usize, vm: &'static Vm, maps: Maps, windows: Windows) -> Option<Self> {
        let host_save = Block::take(1)?.start().start();
        let host_state = Block::take(1)?.start().start();
        let block = Block::take(1)?;
        let vmcb_address = block.start().start();
        let vmcb = block.leak_as::<Vmcb>()?;
        enable(host_save);
        save_host_state(host_state);
        let area = SwitchArea {
            gpr: [0; 16],
            xmm: [[0; 2]; 16],
            vmcb: vmcb_address.raw(),
            host_state: host_state.raw(),
        };
        let mut vcpu = Self {
            area,
            vmcb,
            index,
            vm,
            windows,
            pins: None,
            maps,
            injection: None,
            view: vm.first_view(),
            flush: true,
            nmi_waiting: false,
            nmi_blocked: false,
            cpuid_at: [u64::MAX; 16],
            shared: cpu::shared(index),
        };
        vcpu.set_intercepts();
        Some(vcpu)
    }

    fn set_intercepts(&mut self) {
        let vmcb = &mut *self.vmcb;
        vmcb.intercept1 = intercept1::NMI
            | intercept1::INIT
            | intercept1::IOIO
            | intercept1::MSR
            | intercept1::SHUTDOWN;
        if self.vm.policy.announce {
            vmcb.intercept1 |= intercept1::CPUID;
        }
        vmcb.intercept2 = svm::INTERCEPT2_SVM;
        vmcb.io_permission_map = self.maps.io.raw();
        vmcb.msr_permission_map = self.maps.msr_boot.raw();
        vmcb.asid = 1;
        vmcb.nested_control = 1;
        vmcb.nested_cr3 = self.vm.root(self.view).start().raw();
        // The reset value (APM 7.8.2), as firmware leaves it.
        vmcb.guest_pat = 0x0007_0406_0007_0406;
    }

    /// Puts the vCPU at `entry` in 64-bit mode with the identity tables of the boot protocol.
    pub fn reset_to(&mut self, entry: Gpa, rsi: u64, tables: Gpa, gdt: Gpa, stack: Gpa) {
        let flat =
            |selector, attributes| Segment { selector, attributes, limit: u32::MAX, base: 0 };
        let vmcb = &mut *self.vmcb;
        vmcb.cs = flat(0x10, 0xa9b);
        for segment in [&mut vmcb.es, &mut vmcb.ss, &mut vmcb.ds, &mut vmcb.fs, &mut vmcb.gs] {
            *segment = flat(0x18, 0xc93);
        }
        vmcb.gdtr = Segment { limit: 0x1f, base: gdt.raw(), ..Segment::default() };
        vmcb.idtr = Segment::default();
        vmcb.ldtr = Segment { attributes: 0x82, ..Segment::default() };
        vmcb.tr = Segment { attributes: 0x8b, limit: 0xffff, ..Segment::default() };
        vmcb.cpl = 0;
        vmcb.efer = efer::SVME | efer::LMA | efer::LME;
        vmcb.cr0 = cr0::PG | cr0::ET | cr0::PE;
        vmcb.cr3 = tables.raw();
        vmcb.cr4 = cr4::PAE;
        vmcb.dr6 = 0xffff_0ff0;
        vmcb.dr7 = 0x400;
        vmcb.rflags = rflags::RESERVED;
        vmcb.rip = entry.raw();
        vmcb.rsp = stack.raw();
        self.area.gpr = [0; 16];
        self.set_gpr(6, rsi);
    }

    /// Runs the guest for ever.
    pub fn run(&mut self) -> ! {
        loop {
            self.enter();
            self.handle_exit();
        }
    }

    fn enter(&mut self) {
        if crate::vm::shootdown::enter_guest(self.vm, self.index) {
            self.flush = true;
            self.adopt_lock();
        }
        let vmcb = &mut *self.vmcb;
        vmcb.tlb_control = if self.flush { svm::TLB_FLUSH_ALL } else { 0 };
        self.flush = false;
        if self.nmi_waiting && !self.nmi_blocked && self.injection.is_none() {
            self.nmi_waiting = false;
            self.nmi_blocked = true;
            self.injection = Some(EventInjection::NMI);
            vmcb.intercept1 |= intercept1::IRET;
        }
        vmcb.event_injection = self.injection.take().map_or(0, |event| event.0);
        // SAFETY: area and VMCB are this vCPU's, the addresses in the area are those of the VMCB
        // and of the page that `save_host_state` filled. The guest reaches nothing of the
        // hypervisor's but through the second stage, which does not map it.
        unsafe { svm_enter(&raw mut self.area, &raw mut *self.vmcb) };
        self.shared.in_guest.store(false, Ordering::SeqCst);
        self.injection = EventInjection::interrupted(self.vmcb.exit_interrupt_info);
    }

    /// Takes over what the lock decided since the last entry.
    fn adopt_lock(&mut self) {
        let stage = self.vm.stage();
        if stage.is_armed() && self.pins.is_none() {
            self.pins = Some(Pins::capture(self));
            let vmcb = &mut *self.vmcb;
            vmcb.cr_write |= cr_write::CR0 | cr_write::CR4;
            vmcb.intercept1 |= intercept1::IDTR_WRITE
                | intercept1::GDTR_WRITE
                | intercept1::LDTR_WRITE
                | intercept1::TR_WRITE;
            vmcb.msr_permission_map = self.maps.msr_locked.raw();
        }
        // While read-only data waits, each address-space switch is an occasion to look again.
        if stage.waits_for_rodata() {
            self.vmcb.cr_write |= cr_write::CR3;
        } else {
            self.vmcb.cr_write &= !cr_write::CR3;
        }
    }

    /// Handles a pending NMI: a shootdown's is done with, any other is the guest's.
    pub(super) fn take_nmi(&mut self) {
        // SAFETY: the NMI gate leads to an empty handler on the trap stack.
        unsafe { svm_take_pending_nmi() };
        if !self.shared.kicked.swap(false, Ordering::SeqCst) {
            self.nmi_waiting = true;
        }
    }

    /// The guest leaves its NMI handler.
    pub(super) fn nmi_handler_ends(&mut self) {
        self.nmi_blocked = false;
        self.vmcb.intercept1 &= !intercept1::IRET;
    }

    /// General register by its encoding, 0 to 15.
    pub fn gpr(&self, number: usize) -> u64 {
        match number {
            0 => self.vmcb.rax,
            4 => self.vmcb.rsp,
            _ => self.area.gpr.get(number).copied().unwrap_or(0),
        }
    }

    /// Sets a general register.
    pub fn set_gpr(&mut self, number: usize, value: u64) {
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

    /// Address of the instruction that exited.
    pub fn rip(&self) -> Gva {
        Gva::new(self.vmcb.rip.wrapping_add(if self.mode() == Mode::Bits64 {
            0
        } else {
            self.vmcb.cs.base
        }))
    }

    /// Privilege level.
    pub fn cpl(&self) -> u8 {
        self.vmcb.cpl
    }

    /// CR0, CR3, CR4 by number; 0 for others.
    pub fn control_register(&self, number: u8) -> u64 {
        match number {
            0 => self.vmcb.cr0,
            3 => self.vmcb.cr3,
            4 => self.vmcb.cr4,
            _ => 0,
        }
    }

    /// EFER as the guest sees it.
    pub fn guest_efer(&self) -> u64 {
        self.vmcb.efer & !efer::SVME
    }

    /// Number of levels of the guest's page tables; `None` while paging is off.
    pub fn paging_levels(&self) -> Option<u8> {
        (self.vmcb.cr0 & cr0::PG != 0).then_some(if self.vmcb.cr4 & cr4::LA57 != 0 { 5 } else { 4 })
    }

    /// Code size of the guest.
    pub fn mode(&self) -> Mode {
        if self.vmcb.efer & efer::LMA != 0 && self.vmcb.cs.attributes & Segment::LONG != 0 {
            Mode::Bits64
        } else if self.vmcb.cs.attributes & Segment::DEFAULT_32 != 0 {
            Mode::Bits32
        } else {
            Mode::Bits16
        }
    }

    /// All that the decoder wants to know.
    pub fn registers(&self) -> Registers {
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

    /// The control block, for the pins.
    pub fn vmcb(&self) -> &Vmcb {
        self.vmcb
    }

    /// Steps over an instruction of `length` bytes.
    pub fn advance(&mut self, length: u8) {
        let next = self.vmcb.rip.wrapping_add(u64::from(length));
        self.vmcb.rip = if self.mode() == Mode::Bits64 { next } else { next & 0xffff_ffff };
        self.vmcb.interrupt_shadow = 0;
        self.vmcb.rflags &= !rflags::RF;
    }

    /// Lets the guest take an exception instead of going on.
    pub fn inject(&mut self, event: EventInjection) {
        self.injection = Some(event);
    }

    /// The view in force.
    pub fn view(&self) -> View {
        self.view
    }

    /// Switches the view.
    pub fn set_view(&mut self, view: View) {
        self.view = view;
        self.vmcb.nested_cr3 = self.vm.root(view).start().raw();
        self.flush = true;
    }

    /// Forgets all translations before the next entry.
    pub fn request_flush(&mut self) {
        self.flush = true;
    }

    /// What other CPUs see.
    pub fn shared(&self) -> &'static CpuShared {
        self.shared
    }

    /// Physical memory through this CPU's windows.
    pub fn physical(&self) -> Physical<'_> {
        Physical::new(&self.windows)
    }
}
