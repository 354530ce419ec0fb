//! The vCPU on Intel: its VMCS, which is this CPU's current one from [`Vendor::new`] on, and the
//! world switch.

use super::controls::{Controls, has_secondary};
use super::instructions::{invept_all, vmread, vmwrite};
use super::maps::HIDDEN;
use super::{Maps, SwitchArea, setup, vmx_enter, vmx_host_nmi};
use crate::boot::Machine;
use crate::cpu::instructions::{read_msr, write_msr};
use crate::vendor::{Exception, Exit, HiddenMsr, Settings, SplitExecution, Start, Vendor};
use crate::vm::Ram;
use addr::{Gva, Hfn};
use heki::control::{CR0_ONES, CR0_ZEROS, CR4_ONES, CR4_ZEROS};
use integrity::pins::{cr0_pin, cr4_pin};
use mtrr::MemoryTypes;
use paging::Ept;
use spin::Once;
use x86_decode::{Mode, Registers, Table};
use x86_defs::msr::{efer, feature_control};
use x86_defs::vmx::{event, exit, field, interruptibility, primary, secondary, segment};
use x86_defs::{cr0, cr4, msr, rflags, vector};

/// A vCPU on Intel VMX.
pub struct Vmx {
    area: SwitchArea,
    controls: Controls,
    maps: Maps,
    launched: bool,
    /// An event is queued for the next entry.
    queued: bool,
}

static MACHINE: Once<Machine<Vmx>> = Once::new();

/// Linear addresses have 48 bits, or 57 where the guest has five levels; MSRs that hold one take
/// no other.
const fn is_canonical(address: u64) -> bool {
    let high = address.cast_signed() >> 47;
    high == 0 || high == -1
}

impl Vmx {
    /// Queues an event for the next entry, in place of any other.
    pub(super) fn queue(&mut self, info: u64) {
        vmwrite(field::ENTRY_EVENT, info);
        self.queued = true;
    }

    /// Sets the pin-based controls, without the timer.
    pub(super) fn set_pin_controls(&self) {
        vmwrite(field::PIN_CONTROLS, u64::from(self.controls.pin));
    }

    pub(super) fn change_primary(&mut self, control: u32, on: bool) {
        let primary = &mut self.controls.primary;
        *primary = *primary & !control | if on { control } else { 0 };
        vmwrite(field::PRIMARY_CONTROLS, u64::from(*primary));
    }

    /// Whether an event waits whose delivery the exit interrupted.
    pub(super) fn interrupted_delivery(&self) -> bool {
        vmread(field::VECTORING_EVENT) & event::VALID != 0
    }

    /// Guest and hypervisor share a register: the guest sees its own bits, and where `mask` is set
    /// those of the shadow.
    fn shadowed(register: u64, mask: u64, shadow: u64) -> u64 {
        let mask = vmread(mask);
        vmread(register) & !mask | vmread(shadow) & mask
    }
}

impl Vendor for Vmx {
    type Table = Ept;
    type Maps = Maps;

    fn check_support() -> Result<(), &'static str> {
        super::check_support()
    }

    fn splits_execution() -> Option<SplitExecution> {
        has_secondary(secondary::MODE_BASED_EXECUTE).then_some(SplitExecution::ByAddress)
    }

    fn executes_unread() -> bool {
        super::ept_capabilities().execute_only().is_some()
    }

    fn memory_types(ram: &Ram) -> Result<MemoryTypes, &'static str> {
        super::memory_types(ram)
    }

    /// INIT exits inside of the guest and is blocked outside; SIPI does nothing in either (SDM 3C
    /// 24.8, 26.2).
    fn holds_against_init() -> bool {
        true
    }

    fn machine() -> &'static Once<Machine<Self>> {
        &MACHINE
    }

    fn nmi_handler() -> u64 {
        vmx_host_nmi as *const () as u64
    }

    fn maps() -> Option<Maps> {
        Maps::new()
    }

    fn new(settings: &Settings<Self>) -> Result<Self, &'static str> {
        let controls = Controls::of_this_cpu(settings.split_execution)?;
        setup::enable()?;
        setup::write_controls(&controls, settings)?;
        setup::write_host_state(settings.index);
        let area = SwitchArea { gpr: [0; 16], xmm: [[0; 2]; 16] };
        Ok(Self { area, controls, maps: settings.maps, launched: false, queued: false })
    }

    fn reset_to(&mut self, start: Start) {
        setup::write_guest_state(start);
        vmwrite(field::MSR_BITMAP, self.maps.msr_boot.raw());
        vmwrite(field::ENTRY_CONTROLS, u64::from(self.controls.entry));
        vmwrite(field::ENTRY_EVENT, 0);
        self.queued = false;
        self.controls.secondary &= !secondary::DESCRIPTOR_TABLE_EXITING;
        vmwrite(field::SECONDARY_CONTROLS, u64::from(self.controls.secondary));
        self.change_primary(primary::NMI_WINDOW_EXITING | primary::INTERRUPT_WINDOW_EXITING, false);
        self.set_pin_controls();
        self.area.gpr = [0; 16];
        self.set_gpr(6, start.rsi);
    }

    #[inline(always)]
    fn enter(&mut self, flush: bool) -> Exit {
        if flush {
            invept_all();
        }
        // SAFETY: the VMCS is this CPU's current one. Its host state is that of this CPU, whose
        // RSP the stub stores; the guest reaches nothing of the hypervisor's but through the
        // second stage, which does not map it.
        let refused = unsafe { vmx_enter(&raw mut self.area, u64::from(self.launched)) };
        if refused != 0 {
            let detail = [vmread(field::INSTRUCTION_ERROR), vmread(field::ENTRY_EVENT)];
            return Exit::Failed { reason: exit::ENTRY_FAILED, detail };
        }
        self.launched = true;
        self.queued = false;
        self.requeue_interrupted();
        self.exit_reason()
    }

    fn set_root(&mut self, root: Hfn) {
        // Checked when the first root was set.
        if let Ok(pointer) = setup::ept_pointer(root) {
            vmwrite(field::EPT_POINTER, pointer);
        }
    }

    fn inject(&mut self, exception: Exception) {
        let exception = match exception {
            Exception::UndefinedOpcode => u64::from(vector::UD),
            Exception::GeneralProtection => u64::from(vector::GP) | event::ERROR_CODE,
        };
        vmwrite(field::ENTRY_ERROR_CODE, 0);
        self.queue(exception | event::TYPE_EXCEPTION << event::TYPE_SHIFT | event::VALID);
    }

    fn inject_nmi(&mut self) -> bool {
        let blocked = interruptibility::BLOCKED_BY_NMI | interruptibility::SHADOW;
        let can = !self.queued && vmread(field::INTERRUPTIBILITY) & blocked == 0;
        if can {
            self.queue(
                u64::from(vector::NMI) | event::TYPE_NMI << event::TYPE_SHIFT | event::VALID,
            );
        } else {
            self.change_primary(primary::NMI_WINDOW_EXITING, true);
        }
        can
    }

    fn can_take_interrupt(&self) -> bool {
        !self.queued
            && vmread(field::GUEST_RFLAGS) & rflags::IF != 0
            && vmread(field::INTERRUPTIBILITY) & interruptibility::SHADOW == 0
    }

    fn inject_interrupt(&mut self, vector: u8) {
        self.queue(u64::from(vector) | event::TYPE_INTERRUPT << event::TYPE_SHIFT | event::VALID);
    }

    fn request_interrupt_window(&mut self) {
        self.change_primary(primary::INTERRUPT_WINDOW_EXITING, true);
    }

    /// RFLAGS.IF alone decides.
    fn accept_interrupts(&mut self, _accept: bool) {}

    fn instruction_length(&self) -> Option<u8> {
        Some(vmread(field::INSTRUCTION_LENGTH).to_le_bytes()[0])
    }

    fn advance(&mut self, length: u8) {
        let rip = vmread(field::GUEST_RIP);
        let next = rip.wrapping_add(u64::from(length));
        // Only 64-bit code goes on past the end of 4 GiB.
        let wraps = (rip ^ next) >> 32 != 0 && self.mode() != Mode::Bits64;
        vmwrite(field::GUEST_RIP, if wraps { next & 0xffff_ffff } else { next });
        let state = vmread(field::INTERRUPTIBILITY);
        if state & interruptibility::SHADOW != 0 {
            vmwrite(field::INTERRUPTIBILITY, state & !interruptibility::SHADOW);
        }
        let flags = vmread(field::GUEST_RFLAGS);
        if flags & rflags::RF != 0 {
            vmwrite(field::GUEST_RFLAGS, flags & !rflags::RF);
        }
    }

    fn gpr(&self, number: usize) -> u64 {
        match number {
            4 => vmread(field::GUEST_RSP),
            _ => self.area.gpr.get(number).copied().unwrap_or(0),
        }
    }

    fn set_gpr(&mut self, number: usize, value: u64) {
        if number == 4 {
            vmwrite(field::GUEST_RSP, value);
        } else if let Some(register) = self.area.gpr.get_mut(number) {
            *register = value;
        }
    }

    fn rip(&self) -> Gva {
        let base = if self.mode() == Mode::Bits64 {
            0
        } else {
            vmread(field::GUEST_BASE + 2 * segment::CS)
        };
        Gva::new(vmread(field::GUEST_RIP).wrapping_add(base))
    }

    fn cpl(&self) -> u8 {
        // The DPL of SS is the CPL (SDM 3C, 25.4.1).
        (vmread(field::GUEST_RIGHTS + 2 * segment::SS) >> 5 & 3).to_le_bytes()[0]
    }

    fn mode(&self) -> Mode {
        let rights = vmread(field::GUEST_RIGHTS + 2 * segment::CS);
        if rights & segment::LONG != 0 && vmread(field::GUEST_EFER) & efer::LMA != 0 {
            Mode::Bits64
        } else if rights & segment::DEFAULT_32 != 0 {
            Mode::Bits32
        } else {
            Mode::Bits16
        }
    }

    fn registers(&self) -> Registers {
        let mut gpr = self.area.gpr;
        gpr[4] = vmread(field::GUEST_RSP);
        let segments =
            [segment::ES, segment::CS, segment::SS, segment::DS, segment::FS, segment::GS];
        Registers {
            gpr,
            rip: vmread(field::GUEST_RIP),
            rflags: vmread(field::GUEST_RFLAGS),
            segment_base: segments.map(|register| vmread(field::GUEST_BASE + 2 * register)),
            mode: self.mode(),
        }
    }

    fn control_register(&self, number: u8) -> u64 {
        match number {
            0 => Self::shadowed(field::GUEST_CR0, field::CR0_MASK, field::CR0_SHADOW),
            3 => vmread(field::GUEST_CR3),
            4 => Self::shadowed(field::GUEST_CR4, field::CR4_MASK, field::CR4_SHADOW),
            _ => 0,
        }
    }

    fn set_control_register(&mut self, number: u8, value: u64) {
        const KEEP_TRANSLATIONS: u64 = 1 << 63;
        // What decides on the mode that the entry loads stays.
        const MODE: u64 = cr0::PE | cr0::PG;
        const MODE4: u64 = cr4::PAE | cr4::LA57;
        match number {
            0 => {
                let mode = vmread(field::GUEST_CR0) & MODE;
                vmwrite(field::GUEST_CR0, value & !MODE | mode | cr0::NE | cr0::ET);
                vmwrite(field::CR0_SHADOW, value | cr0::ET);
            }
            3 => vmwrite(field::GUEST_CR3, value & !KEEP_TRANSLATIONS),
            4 => {
                let mode = vmread(field::GUEST_CR4) & MODE4;
                vmwrite(field::GUEST_CR4, value & !MODE4 | mode | cr4::VMXE);
                vmwrite(field::CR4_SHADOW, value);
            }
            _ => {}
        }
    }

    fn efer(&self) -> u64 {
        vmread(field::GUEST_EFER)
    }

    fn set_efer(&mut self, value: u64) {
        vmwrite(field::GUEST_EFER, value);
    }

    fn msr(&self, number: u32) -> u64 {
        match number {
            msr::SYSENTER_CS => vmread(field::GUEST_SYSENTER_CS),
            msr::SYSENTER_ESP => vmread(field::GUEST_SYSENTER_ESP),
            msr::SYSENTER_EIP => vmread(field::GUEST_SYSENTER_EIP),
            // The hypervisor does not use the others: they are the guest's all the time.
            other => read_msr(other),
        }
    }

    fn set_msr(&mut self, number: u32, value: u64) -> bool {
        match number {
            msr::SYSENTER_CS => vmwrite(field::GUEST_SYSENTER_CS, value & 0xffff_ffff),
            msr::SYSENTER_ESP if is_canonical(value) => {
                vmwrite(field::GUEST_SYSENTER_ESP, value);
            }
            msr::SYSENTER_EIP if is_canonical(value) => {
                vmwrite(field::GUEST_SYSENTER_EIP, value);
            }
            // SAFETY: the hypervisor never executes SYSCALL or SYSRET; any value is legal.
            msr::STAR => unsafe { write_msr(number, value) },
            msr::LSTAR | msr::CSTAR if is_canonical(value) => {
                // SAFETY: as for STAR; the address is canonical.
                unsafe { write_msr(number, value) }
            }
            // SAFETY: as for STAR; the upper half is reserved and clear.
            msr::SFMASK if value >> 32 == 0 => unsafe { write_msr(number, value) },
            _ => return false,
        }
        true
    }

    fn hidden_msr(number: u32) -> Option<HiddenMsr> {
        match number {
            // Locked by the firmware with VMX off.
            msr::FEATURE_CONTROL => {
                Some(HiddenMsr { value: Some(feature_control::LOCK), ignores_writes: false })
            }
            other if HIDDEN.iter().any(|range| range.contains(&other)) => {
                Some(HiddenMsr { value: None, ignores_writes: false })
            }
            _ => None,
        }
    }

    fn table(&self, table: Table) -> (u64, u32) {
        let (base, limit) = if table == Table::Gdtr {
            (field::GUEST_GDTR_BASE, field::GUEST_GDTR_LIMIT)
        } else {
            (field::GUEST_IDTR_BASE, field::GUEST_IDTR_LIMIT)
        };
        (vmread(base), crate::cpu::instructions::low_half(vmread(limit)))
    }

    fn set_table(&mut self, table: Table, base: u64, limit: u32) {
        let fields = if table == Table::Gdtr {
            (field::GUEST_GDTR_BASE, field::GUEST_GDTR_LIMIT)
        } else {
            (field::GUEST_IDTR_BASE, field::GUEST_IDTR_LIMIT)
        };
        vmwrite(fields.0, base);
        vmwrite(fields.1, u64::from(limit));
    }

    fn selector(&self, table: Table) -> u16 {
        let register = if table == Table::Ldtr { segment::LDTR } else { segment::TR };
        let [low, high, ..] = vmread(field::GUEST_SELECTOR + 2 * register).to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// Only writes that change a bit that is pinned, or that the guest can ask to pin, exit: the
    /// guest reads, and writes the rest, by itself.
    fn lock(&mut self) {
        let (zero, four) = (self.control_register(0), self.control_register(4));
        let (pin0, pin4) = (cr0_pin(zero), cr4_pin(four));
        vmwrite(field::CR0_SHADOW, zero);
        let asked = CR0_ONES | CR0_ZEROS;
        vmwrite(field::CR0_MASK, pin0.must_be_one | pin0.must_be_zero | asked);
        vmwrite(field::CR4_SHADOW, four);
        let own = cr4::VMXE | cr4::SMXE | CR4_ONES | CR4_ZEROS;
        vmwrite(field::CR4_MASK, pin4.must_be_one | pin4.must_be_zero | own);
        vmwrite(field::MSR_BITMAP, self.maps.msr_locked.raw());
        self.controls.secondary |= secondary::DESCRIPTOR_TABLE_EXITING;
        vmwrite(field::SECONDARY_CONTROLS, u64::from(self.controls.secondary));
    }

    fn watch_address_space(&mut self, watch: bool) {
        self.change_primary(primary::CR3_LOAD_EXITING, watch);
    }
}
