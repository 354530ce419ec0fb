//! Entering VMX operation, and the fields of a VMCS that never change or start as given here.

use super::controls::Controls;
use super::instructions::{vmclear, vmptrld, vmwrite, vmxon};
use super::{Vmx, ept_capabilities, vmx_exit};
use crate::cpu::instructions::{
    cpuid, low_half, read_cr0, read_cr3, read_cr4, read_msr, write_cr0, write_cr4, write_msr,
};
use crate::cpu::tables;
use crate::memory::pool::Block;
use crate::vendor::{Settings, Start};
use addr::{Hfn, Hpa};
use paging::Eptp;
use x86_defs::msr::{efer, feature_control};
use x86_defs::vmx::{BASIC_REVISION, field, segment};
use x86_defs::{cr0, cr4, msr, rflags};

const NO_POOL: &str = "the pool is too small";
/// CPUID leaf 1, ECX: the CPU has XSAVE.
const XSAVE: u32 = 1 << 26;
const VPID: u64 = 1;
const NO_LINK: u64 = u64::MAX;

/// Turns VMX on and makes a new VMCS the current one, for ever.
pub fn enable() -> Result<(), &'static str> {
    let control = read_msr(msr::FEATURE_CONTROL);
    if control & feature_control::LOCK == 0 {
        let value = control | feature_control::VMX | feature_control::LOCK;
        // SAFETY: the register is not locked, and permits VMX afterwards, nothing else.
        unsafe { write_msr(msr::FEATURE_CONTROL, value) };
    }
    let fixed = |value, ones, may| (value | read_msr(ones)) & read_msr(may);
    // SAFETY: the bits that VMX wants are those of 64-bit operation, and NE.
    unsafe { write_cr0(fixed(read_cr0(), msr::VMX_CR0_FIXED0, msr::VMX_CR0_FIXED1)) };
    // The hypervisor executes XSETBV for the guest.
    let xsave = if cpuid(1, 0).ecx & XSAVE != 0 { cr4::OSXSAVE } else { 0 };
    let wanted = read_cr4() | xsave;
    // SAFETY: VMXE is among the bits that are set; none that running code relies on is cleared.
    unsafe { write_cr4(fixed(wanted, msr::VMX_CR4_FIXED0, msr::VMX_CR4_FIXED1)) };
    let (region, vmcs) = (revised_page().ok_or(NO_POOL)?, revised_page().ok_or(NO_POOL)?);
    // SAFETY: CR4.VMXE and the feature-control register allow it; the page is new and leaked.
    unsafe { vmxon(region) }.map_err(|_| "VMXON failed")?;
    // SAFETY: in VMX operation; the page is new and leaked.
    unsafe { vmclear(vmcs) }.map_err(|_| "VMCLEAR failed")?;
    // SAFETY: likewise.
    unsafe { vmptrld(vmcs) }.map_err(|_| "VMPTRLD failed")
}

/// A page that begins with the revision identifier.
fn revised_page() -> Option<Hpa> {
    let block = Block::take(1)?;
    let start = block.start().start();
    let revision = low_half(read_msr(msr::VMX_BASIC) & BASIC_REVISION);
    block.leak().get_mut(..4)?.copy_from_slice(&revision.to_le_bytes());
    Some(start)
}

/// The pointer to a second-stage table.
pub fn ept_pointer(root: Hfn) -> Result<u64, &'static str> {
    let pointer = Eptp::new(root, ept_capabilities());
    pointer.map(Eptp::raw).map_err(|_| "this CPU cannot use the second stage")
}

/// Controls, and what stays as it is.
pub fn write_controls(controls: &Controls, settings: &Settings<Vmx>) -> Result<(), &'static str> {
    vmwrite(field::PIN_CONTROLS, u64::from(controls.pin));
    vmwrite(field::PRIMARY_CONTROLS, u64::from(controls.primary));
    vmwrite(field::SECONDARY_CONTROLS, u64::from(controls.secondary));
    vmwrite(field::EXIT_CONTROLS, u64::from(controls.exit));
    vmwrite(field::ENTRY_CONTROLS, u64::from(controls.entry));
    vmwrite(field::EXCEPTION_BITMAP, 0);
    vmwrite(field::XSS_EXITING_BITMAP, 0);
    vmwrite(field::IO_BITMAP_A, settings.maps.io.raw());
    vmwrite(field::IO_BITMAP_B, settings.maps.io.plus(addr::PAGE_SIZE).raw());
    vmwrite(field::MSR_BITMAP, settings.maps.msr_boot.raw());
    vmwrite(field::EPT_POINTER, ept_pointer(settings.root)?);
    vmwrite(field::VPID, VPID);
    vmwrite(field::TIMER, 0);
    vmwrite(field::LINK_POINTER, NO_LINK);
    Ok(())
}

/// What the CPU loads at an exit: what is in force now.
pub fn write_host_state(cpu: usize) {
    for register in segment::ES..=segment::GS {
        let selector = if register == segment::CS { tables::CODE } else { tables::DATA };
        vmwrite(field::HOST_SELECTOR + 2 * register, u64::from(selector));
    }
    // TR follows GS: there is no LDTR.
    vmwrite(field::HOST_SELECTOR + 2 * segment::LDTR, u64::from(tables::TSS));
    let tables::Places { gdt, idt, tss } = tables::places(cpu);
    vmwrite(field::HOST_GDTR_BASE, gdt);
    vmwrite(field::HOST_IDTR_BASE, idt);
    vmwrite(field::HOST_TR_BASE, tss);
    vmwrite(field::HOST_CR0, read_cr0());
    vmwrite(field::HOST_CR3, read_cr3());
    vmwrite(field::HOST_CR4, read_cr4());
    vmwrite(field::HOST_EFER, read_msr(msr::EFER));
    vmwrite(field::HOST_PAT, read_msr(msr::PAT));
    vmwrite(field::HOST_SYSENTER_CS, 0);
    vmwrite(field::HOST_RIP, vmx_exit as *const () as u64);
}

/// The guest as a CPU of it starts.
pub fn write_guest_state(start: Start) {
    for register in segment::ES..=segment::TR {
        let (selector, rights, limit) = match register {
            segment::CS => (0x10, 0xa09b, u32::MAX),
            segment::LDTR => (0, segment::UNUSABLE, 0),
            segment::TR => (0, 0x8b, 0xffff),
            _ => (0x18, 0xc093, u32::MAX),
        };
        vmwrite(field::GUEST_SELECTOR + 2 * register, selector);
        vmwrite(field::GUEST_RIGHTS + 2 * register, rights);
        vmwrite(field::GUEST_LIMIT + 2 * register, u64::from(limit));
        vmwrite(field::GUEST_BASE + 2 * register, 0);
    }
    vmwrite(field::GUEST_GDTR_BASE, start.gdt.raw());
    vmwrite(field::GUEST_GDTR_LIMIT, 0x1f);
    vmwrite(field::GUEST_IDTR_BASE, 0);
    vmwrite(field::GUEST_IDTR_LIMIT, 0);
    vmwrite(field::GUEST_CR0, cr0::PG | cr0::NE | cr0::ET | cr0::PE);
    vmwrite(field::GUEST_CR3, start.tables.raw());
    vmwrite(field::GUEST_CR4, cr4::PAE | cr4::VMXE);
    // The guest sees CR4 without VMX and SMX, and cannot set either.
    vmwrite(field::CR0_MASK, 0);
    vmwrite(field::CR0_SHADOW, 0);
    vmwrite(field::CR4_MASK, cr4::VMXE | cr4::SMXE);
    vmwrite(field::CR4_SHADOW, 0);
    vmwrite(field::GUEST_EFER, efer::LMA | efer::LME | efer::NXE);
    // The reset value (SDM 3A, 12.12.4), as firmware leaves it.
    vmwrite(field::GUEST_PAT, 0x0007_0406_0007_0406);
    vmwrite(field::GUEST_DR7, 0x400);
    vmwrite(field::GUEST_DEBUGCTL, 0);
    vmwrite(field::GUEST_RFLAGS, rflags::RESERVED);
    vmwrite(field::GUEST_RIP, start.entry.raw());
    vmwrite(field::GUEST_RSP, start.stack.raw());
    vmwrite(field::INTERRUPTIBILITY, 0);
    vmwrite(field::ACTIVITY, 0);
    vmwrite(field::PENDING_DEBUG, 0);
    vmwrite(field::GUEST_SYSENTER_CS, 0);
    vmwrite(field::GUEST_SYSENTER_ESP, 0);
    vmwrite(field::GUEST_SYSENTER_EIP, 0);
}
