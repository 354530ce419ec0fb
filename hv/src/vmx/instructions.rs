//! The VMX instructions, one small function each.

use addr::Hpa;
use core::arch::asm;

/// Reads a field of the current VMCS. Of a field that this CPU does not have the value is arbitrary.
#[inline]
pub fn vmread(field: u64) -> u64 {
    let value: u64;
    // SAFETY: VMREAD changes nothing but its operand. Its callers hold a [`super::Vmx`], which
    // exists only while its VMCS is current, or have just made one so.
    unsafe {
        asm!("vmread {value}, {field}", field = in(reg) field, value = lateout(reg) value,
             options(nostack, readonly));
    }
    value
}

/// Writes a field of the current VMCS. A field that does not exist stays so.
///
/// A value that the guest must not have is the caller's fault: host state decides where the next
/// exit leads.
#[inline]
pub fn vmwrite(field: u64, value: u64) {
    // SAFETY: as for `vmread`. The CPU checks guest state at the entry; host state and controls
    // are written from `setup` and the methods of `Vmx` only.
    unsafe {
        asm!("vmwrite {field}, {value}", field = in(reg) field, value = in(reg) value,
             options(nostack));
    }
}

/// Why a VMX instruction did nothing.
#[derive(Clone, Copy, Debug)]
pub struct Refused;

macro_rules! with_pointer {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        pub unsafe fn $name(page: Hpa) -> Result<(), Refused> {
            let address = page.raw();
            let failed: u8;
            // SAFETY: the caller vouches for the page and the state of the CPU.
            unsafe {
                asm!($instruction, "setbe {failed}", address = in(reg) &raw const address,
                     failed = out(reg_byte) failed, options(nostack));
            }
            if failed == 0 { Ok(()) } else { Err(Refused) }
        }
    };
}

with_pointer!(
    /// Enters VMX operation.
    ///
    /// # Safety
    /// CR4.VMXE is set, VMX is enabled in the feature-control register, and the page is this
    /// CPU's own for ever, with the revision identifier in its first word.
    vmxon,
    "vmxon [{address}]"
);
with_pointer!(
    /// Makes a VMCS clear.
    ///
    /// # Safety
    /// In VMX operation; the page is this CPU's own for ever, and no VMXON region.
    vmclear,
    "vmclear [{address}]"
);
with_pointer!(
    /// Makes a VMCS the current one.
    ///
    /// # Safety
    /// As for `vmclear`; the page has the revision identifier in its first word.
    vmptrld,
    "vmptrld [{address}]"
);

/// Forgets the translations of all second-stage tables, and those of guests that go through them.
pub fn invept_all() {
    const ALL_CONTEXTS: u64 = 2;
    let descriptor = [0_u64; 2];
    // SAFETY: INVEPT only forgets. `check_support` has found this type of it.
    unsafe {
        asm!("invept {kind}, [{descriptor}]", kind = in(reg) ALL_CONTEXTS,
             descriptor = in(reg) &raw const descriptor, options(nostack));
    }
}
