//! Intel VMX: enabling it, the vCPU and its world switch (SDM 3C, chapters 24 to 32; 23 to 31 in
//! older editions).
//!
//! External interrupts are the guest's and do not exit. NMIs exit; one that hits the hypervisor
//! makes the next entry exit at once (`switch.s`). INIT is blocked outside of the guest, and exits
//! inside of it.

mod controls;
mod exits;
mod instructions;
mod maps;
mod second_stage;
mod setup;
mod vcpu;

pub use maps::Maps;
pub use vcpu::Vmx;

use crate::cpu::instructions::{cpuid, physical_address_bits, read_msr};
use crate::log;
use crate::vm::Ram;
use controls::Controls;
use core::arch::global_asm;
use mtrr::{MemoryTypes, MtrrError};
use paging::EptCapabilities;
use x86_defs::{msr, vmx};

global_asm!(include_str!("../cpu/registers.s"), include_str!("switch.s"), options(raw));

const FEATURE_VMX: u32 = 1 << 5;
const FEATURE_MTRR: u32 = 1 << 12;

/// Registers that are swapped by `switch.s`, which knows this layout.
#[repr(C)]
struct SwitchArea {
    /// General registers in the order of their encoding; RSP is in the VMCS.
    gpr: [u64; 16],
    xmm: [[u64; 2]; 16],
}

unsafe extern "C" {
    fn vmx_enter(area: *mut SwitchArea, launched: u64) -> u64;
    fn vmx_exit();
    fn vmx_host_nmi();
}

/// Whether this CPU can run a guest.
fn check_support() -> Result<(), &'static str> {
    if cpuid(1, 0).ecx & FEATURE_VMX == 0 {
        return Err("this CPU has no VMX (Intel VT-x): nothing was started");
    }
    let control = read_msr(msr::FEATURE_CONTROL);
    let (locked, enabled) =
        (control & msr::feature_control::LOCK != 0, control & msr::feature_control::VMX != 0);
    if locked && !enabled {
        return Err("the firmware has disabled VMX: switch it on there; nothing was started");
    }
    if read_msr(msr::VMX_BASIC) & vmx::BASIC_TRUE_CONTROLS == 0 {
        return Err("this CPU's VMX is too old (no true capabilities): nothing was started");
    }
    Controls::of_this_cpu(false)?;
    let capabilities = ept_capabilities();
    if !capabilities.four_levels() || !capabilities.write_back() {
        return Err("this CPU's EPT has no four-level write-back tables: nothing was started");
    }
    if capabilities.largest_leaf() != paging::Level::Page1G {
        return Err("this CPU's EPT has no 1 GiB and 2 MiB leaves: nothing was started");
    }
    if !capabilities.invept_all_contexts() {
        return Err("this CPU's EPT has no INVEPT of all contexts: nothing was started");
    }
    Ok(())
}

/// The MTRRs of this CPU, which firmware sets alike on all. Where there are none or they are
/// switched off, which makes all memory uncacheable outside of the guest, the memory map serves:
/// write-back is right for RAM on any machine.
fn memory_types(ram: &Ram) -> Result<MemoryTypes, &'static str> {
    let by_registers = if cpuid(1, 0).edx & FEATURE_MTRR == 0 {
        None
    } else {
        MemoryTypes::of_mtrrs(read_msr, physical_address_bits()).map_err(|error| match error {
            MtrrError::Holes(_) => {
                "the firmware's MTRRs have a mask with holes: update it; nothing was started"
            }
            MtrrError::TooMany => "this CPU claims too many MTRRs: nothing was started",
        })?
    };
    let source = if by_registers.is_some() { "MTRRs" } else { "memory map, MTRRs being off" };
    log!("memory types by the {source}");
    Ok(by_registers.unwrap_or_else(|| MemoryTypes::of_ram(ram.iter().copied())))
}

fn ept_capabilities() -> EptCapabilities {
    EptCapabilities::from_msr(read_msr(EptCapabilities::MSR))
}
