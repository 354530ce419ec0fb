//! The virtual-machine control structure and its codes (SDM 3C, chapters 25 to 28; 24 to 27 in
//! older editions; appendices A to C).

/// Encodings of VMCS fields (SDM 3D, appendix B).
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod field {
    pub const VPID: u64 = 0x0000;
    /// Guest ES; CS, SS, DS, FS, GS, LDTR and TR follow in steps of 2, in each of the four groups.
    pub const GUEST_SELECTOR: u64 = 0x0800;
    pub const GUEST_LIMIT: u64 = 0x4800;
    pub const GUEST_RIGHTS: u64 = 0x4814;
    pub const GUEST_BASE: u64 = 0x6806;
    /// Host ES; CS, SS, DS, FS, GS and TR follow in steps of 2.
    pub const HOST_SELECTOR: u64 = 0x0c00;
    pub const IO_BITMAP_A: u64 = 0x2000;
    pub const IO_BITMAP_B: u64 = 0x2002;
    pub const MSR_BITMAP: u64 = 0x2004;
    pub const EPT_POINTER: u64 = 0x201a;
    pub const XSS_EXITING_BITMAP: u64 = 0x202c;
    pub const GUEST_PHYSICAL_ADDRESS: u64 = 0x2400;
    pub const LINK_POINTER: u64 = 0x2800;
    pub const GUEST_DEBUGCTL: u64 = 0x2802;
    pub const GUEST_PAT: u64 = 0x2804;
    pub const GUEST_EFER: u64 = 0x2806;
    pub const HOST_PAT: u64 = 0x2c00;
    pub const HOST_EFER: u64 = 0x2c02;
    pub const PIN_CONTROLS: u64 = 0x4000;
    pub const PRIMARY_CONTROLS: u64 = 0x4002;
    pub const EXCEPTION_BITMAP: u64 = 0x4004;
    pub const EXIT_CONTROLS: u64 = 0x400c;
    pub const ENTRY_CONTROLS: u64 = 0x4012;
    pub const ENTRY_EVENT: u64 = 0x4016;
    pub const ENTRY_ERROR_CODE: u64 = 0x4018;
    pub const ENTRY_INSTRUCTION_LENGTH: u64 = 0x401a;
    pub const SECONDARY_CONTROLS: u64 = 0x401e;
    pub const INSTRUCTION_ERROR: u64 = 0x4400;
    pub const EXIT_REASON: u64 = 0x4402;
    pub const EXIT_EVENT: u64 = 0x4404;
    pub const VECTORING_EVENT: u64 = 0x4408;
    pub const VECTORING_ERROR_CODE: u64 = 0x440a;
    pub const INSTRUCTION_LENGTH: u64 = 0x440c;
    pub const GUEST_GDTR_LIMIT: u64 = 0x4810;
    pub const GUEST_IDTR_LIMIT: u64 = 0x4812;
    pub const INTERRUPTIBILITY: u64 = 0x4824;
    pub const ACTIVITY: u64 = 0x4826;
    pub const GUEST_SYSENTER_CS: u64 = 0x482a;
    pub const TIMER: u64 = 0x482e;
    pub const HOST_SYSENTER_CS: u64 = 0x4c00;
    pub const CR0_MASK: u64 = 0x6000;
    pub const CR4_MASK: u64 = 0x6002;
    pub const CR0_SHADOW: u64 = 0x6004;
    pub const CR4_SHADOW: u64 = 0x6006;
    pub const QUALIFICATION: u64 = 0x6400;
    pub const GUEST_LINEAR_ADDRESS: u64 = 0x640a;
    pub const GUEST_CR0: u64 = 0x6800;
    pub const GUEST_CR3: u64 = 0x6802;
    pub const GUEST_CR4: u64 = 0x6804;
    pub const GUEST_GDTR_BASE: u64 = 0x6816;
    pub const GUEST_IDTR_BASE: u64 = 0x6818;
    pub const GUEST_DR7: u64 = 0x681a;
    pub const GUEST_RSP: u64 = 0x681c;
    pub const GUEST_RIP: u64 = 0x681e;
    pub const GUEST_RFLAGS: u64 = 0x6820;
    pub const PENDING_DEBUG: u64 = 0x6822;
    pub const GUEST_SYSENTER_ESP: u64 = 0x6824;
    pub const GUEST_SYSENTER_EIP: u64 = 0x6826;
    pub const HOST_CR0: u64 = 0x6c00;
    pub const HOST_CR3: u64 = 0x6c02;
    pub const HOST_CR4: u64 = 0x6c04;
    pub const HOST_TR_BASE: u64 = 0x6c0a;
    pub const HOST_GDTR_BASE: u64 = 0x6c0c;
    pub const HOST_IDTR_BASE: u64 = 0x6c0e;
    pub const HOST_RSP: u64 = 0x6c14;
    pub const HOST_RIP: u64 = 0x6c16;
}

/// Segment registers in the order of the VMCS: twice this is the distance of their fields.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod segment {
    pub const ES: u64 = 0;
    pub const CS: u64 = 1;
    pub const SS: u64 = 2;
    pub const DS: u64 = 3;
    pub const FS: u64 = 4;
    pub const GS: u64 = 5;
    pub const LDTR: u64 = 6;
    pub const TR: u64 = 7;

    /// Access rights: 64-bit code.
    pub const LONG: u64 = 1 << 13;
    /// Access rights: 32-bit default size.
    pub const DEFAULT_32: u64 = 1 << 14;
    /// Access rights: not loaded.
    pub const UNUSABLE: u64 = 1 << 16;
}

/// Pin-based VM-execution controls.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod pin {
    pub const NMI_EXITING: u32 = 1 << 3;
    pub const VIRTUAL_NMIS: u32 = 1 << 5;
    pub const ACTIVATE_TIMER: u32 = 1 << 6;
}

/// Primary processor-based VM-execution controls.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod primary {
    pub const INTERRUPT_WINDOW_EXITING: u32 = 1 << 2;
    pub const CR3_LOAD_EXITING: u32 = 1 << 15;
    pub const NMI_WINDOW_EXITING: u32 = 1 << 22;
    pub const USE_IO_BITMAPS: u32 = 1 << 25;
    pub const USE_MSR_BITMAPS: u32 = 1 << 28;
    pub const ACTIVATE_SECONDARY: u32 = 1 << 31;
}

/// Secondary processor-based VM-execution controls.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod secondary {
    pub const ENABLE_EPT: u32 = 1 << 1;
    pub const DESCRIPTOR_TABLE_EXITING: u32 = 1 << 2;
    pub const ENABLE_RDTSCP: u32 = 1 << 3;
    pub const ENABLE_VPID: u32 = 1 << 5;
    pub const UNRESTRICTED_GUEST: u32 = 1 << 7;
    pub const ENABLE_INVPCID: u32 = 1 << 12;
    pub const ENABLE_XSAVES: u32 = 1 << 20;
    pub const MODE_BASED_EXECUTE: u32 = 1 << 22;
    pub const ENABLE_USER_WAIT: u32 = 1 << 26;
}

/// VM-exit controls.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod exit_control {
    pub const SAVE_DEBUG_CONTROLS: u32 = 1 << 2;
    pub const HOST_64_BIT: u32 = 1 << 9;
    pub const SAVE_PAT: u32 = 1 << 18;
    pub const LOAD_PAT: u32 = 1 << 19;
    pub const SAVE_EFER: u32 = 1 << 20;
    pub const LOAD_EFER: u32 = 1 << 21;
}

/// VM-entry controls.
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod entry_control {
    pub const LOAD_DEBUG_CONTROLS: u32 = 1 << 2;
    pub const IA32E_MODE: u32 = 1 << 9;
    pub const LOAD_PAT: u32 = 1 << 14;
    pub const LOAD_EFER: u32 = 1 << 15;
}

/// Fields of an event to inject, or whose delivery was interrupted (SDM 3C, 25.8.3, 25.9.3).
pub mod event {
    /// The field holds an event.
    pub const VALID: u64 = 1 << 31;
    /// The event has an error code.
    pub const ERROR_CODE: u64 = 1 << 11;
    /// Position of the type, three bits.
    pub const TYPE_SHIFT: u32 = 8;
    /// Type: external interrupt.
    pub const TYPE_INTERRUPT: u64 = 0;
    /// Type: NMI.
    pub const TYPE_NMI: u64 = 2;
    /// Type: hardware exception.
    pub const TYPE_EXCEPTION: u64 = 3;
    /// Reserved when injecting.
    pub const UNDEFINED: u64 = 1 << 12;
}

/// Interruptibility state (SDM 3C, table 25-3).
pub mod interruptibility {
    /// The instruction after STI, or after a load of SS.
    pub const SHADOW: u64 = 3;
    /// NMIs are blocked.
    pub const BLOCKED_BY_NMI: u64 = 1 << 3;
}

/// Basic exit reasons (SDM 3D, appendix C).
#[expect(missing_docs, reason = "the names are the manual's")]
pub mod exit {
    pub const EXCEPTION_OR_NMI: u64 = 0;
    pub const TRIPLE_FAULT: u64 = 2;
    pub const INIT: u64 = 3;
    pub const SIPI: u64 = 4;
    pub const INTERRUPT_WINDOW: u64 = 7;
    pub const NMI_WINDOW: u64 = 8;
    pub const TASK_SWITCH: u64 = 9;
    pub const CPUID: u64 = 10;
    pub const GETSEC: u64 = 11;
    pub const INVD: u64 = 13;
    pub const VMCALL: u64 = 18;
    /// VMCLEAR; the other VMX instructions follow up to VMXON.
    pub const VMCLEAR: u64 = 19;
    pub const VMXON: u64 = 27;
    pub const CONTROL_REGISTER: u64 = 28;
    pub const IO: u64 = 30;
    pub const RDMSR: u64 = 31;
    pub const WRMSR: u64 = 32;
    pub const GDTR_IDTR: u64 = 46;
    pub const LDTR_TR: u64 = 47;
    pub const EPT_VIOLATION: u64 = 48;
    pub const INVEPT: u64 = 50;
    pub const TIMER: u64 = 52;
    pub const INVVPID: u64 = 53;
    pub const XSETBV: u64 = 55;
    pub const VMFUNC: u64 = 59;
    /// The entry failed: bit 31 of the reason.
    pub const ENTRY_FAILED: u64 = 1 << 31;
}

/// Exit qualification of an EPT violation (SDM 3C, table 28-7).
pub mod ept_violation {
    /// The access was a write, or read and wrote.
    pub const WRITE: u64 = 1 << 1;
    /// The access was an instruction fetch.
    pub const FETCH: u64 = 1 << 2;
    /// The entry allowed something: read, write, supervisor or user execute.
    pub const PRESENT: u64 = 0xf << 3;
    /// There is a linear address.
    pub const LINEAR: u64 = 1 << 7;
    /// The access was to the translation of the linear address, not to a paging structure.
    pub const FINAL: u64 = 1 << 8;
    /// The exit interrupted an IRET that had unblocked NMIs.
    pub const NMI_UNBLOCKED: u64 = 1 << 12;
}

/// Exit qualification of a port access (SDM 3C, table 28-5).
pub mod port {
    /// Size in bytes, less one.
    pub const SIZE_MASK: u64 = 7;
    /// Input rather than output.
    pub const IN: u64 = 1 << 3;
}

/// Bit of `IA32_VMX_BASIC`: the registers with true capabilities exist.
pub const BASIC_TRUE_CONTROLS: u64 = 1 << 55;
/// Revision identifier in `IA32_VMX_BASIC`.
pub const BASIC_REVISION: u64 = 0x7fff_ffff;

/// Byte and bit of an MSR's read permission in the MSR bitmap; the write permission is
/// [`MSR_BITMAP_WRITE`] bytes further. `None` for MSRs that always exit (SDM 3C, 25.6.9).
pub const fn msr_bitmap_position(msr: u32) -> Option<(usize, u8)> {
    let base = match msr {
        0..=0x1fff => 0,
        0xc000_0000..=0xc000_1fff => 0x400,
        _ => return None,
    };
    let bit = msr & 0x1fff;
    Some((base + (bit / 8) as usize, (bit % 8) as u8))
}

/// Distance of the write permissions from the read permissions.
pub const MSR_BITMAP_WRITE: usize = 0x800;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msr_positions_follow_the_manual() {
        assert_eq!(msr_bitmap_position(0), Some((0, 0)));
        assert_eq!(msr_bitmap_position(0x1fff), Some((0x3ff, 7)));
        assert_eq!(msr_bitmap_position(0xc000_0082), Some((0x410, 2)));
        assert_eq!(msr_bitmap_position(0xc001_0000), None);
        assert_eq!(msr_bitmap_position(0x4b56_4d00), None);
    }
}
