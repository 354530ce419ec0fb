//! What the CPU enforces on the hypervisor itself, and what it keeps from tasks (APM volume 2,
//! 3.1.3; SDM volume 3, 2.5).

use super::instructions::{cpuid, read_cr4, write_cr4};
use x86_defs::cr4;

/// CPUID leaf 7: EBX has SMEP and SMAP, ECX has UMIP.
const SMEP: u32 = 1 << 7;
const SMAP: u32 = 1 << 20;
const UMIP: u32 = 1 << 2;

/// Switches on, where this CPU has it: no execution of, and no access to, pages of tasks at CPL 0;
/// no SGDT and its kin at CPL 3.
pub fn protect_own_level() {
    let highest = cpuid(0, 0).eax;
    let features = if highest >= 7 { cpuid(7, 0) } else { return };
    let mut value = read_cr4();
    for (known, bit) in [
        (features.ebx & SMEP != 0, cr4::SMEP),
        (features.ebx & SMAP != 0, cr4::SMAP),
        (features.ecx & UMIP != 0, cr4::UMIP),
    ] {
        value |= if known { bit } else { 0 };
    }
    // SAFETY: the CPU knows the bits that are added, and no code or data that the hypervisor
    // uses is in a user page.
    unsafe { write_cr4(value) };
}

/// Takes AVX and XSAVE from CPL 3, since the guest's registers beyond SSE stay in the CPU while a
/// task runs. Answers what [`show_extended_state`] must put back.
pub fn hide_extended_state() -> Option<u64> {
    let value = read_cr4();
    if value & cr4::OSXSAVE == 0 {
        return None;
    }
    // SAFETY: the hypervisor uses nothing beyond SSE while a task runs.
    unsafe { write_cr4(value & !cr4::OSXSAVE) };
    Some(value)
}

/// Undoes [`hide_extended_state`].
pub fn show_extended_state(value: Option<u64>) {
    if let Some(value) = value {
        // SAFETY: it was in force before.
        unsafe { write_cr4(value) };
    }
}
