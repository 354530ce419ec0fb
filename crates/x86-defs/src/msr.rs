//! Model-specific registers (APM appendix A).

/// Local APIC base and mode.
pub const APIC_BASE: u32 = 0x1b;
/// Whether VMX may be used; locked by the firmware (SDM 3C, 24.7).
pub const FEATURE_CONTROL: u32 = 0x3a;
/// How many memory type range registers there are (SDM 3A, 12.11.1).
pub const MTRR_CAP: u32 = 0xfe;
/// First of the variable ranges: base and mask of each, in turn.
pub const MTRR_VARIABLE: u32 = 0x200;
/// Types of the first MiB: one register of 8 64 KiB blocks, two of 16 KiB, eight of 4 KiB.
pub const MTRR_FIXED: [u32; 11] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// Type of memory that no range covers, and the switches.
pub const MTRR_DEFAULT: u32 = 0x2ff;
/// SYSENTER code selector.
pub const SYSENTER_CS: u32 = 0x174;
/// SYSENTER stack pointer.
pub const SYSENTER_ESP: u32 = 0x175;
/// SYSENTER entry point.
pub const SYSENTER_EIP: u32 = 0x176;
/// Page-attribute table.
pub const PAT: u32 = 0x277;
/// When the local APIC's timer interrupts, in deadline mode; 0: not at all (SDM 3A, 11.5.4.1).
pub const TSC_DEADLINE: u32 = 0x6e0;
/// First of the VMX capability registers (SDM 3D, appendix A): VMCS revision and sizes.
pub const VMX_BASIC: u32 = 0x480;
/// CR0 bits that VMX operation needs set.
pub const VMX_CR0_FIXED0: u32 = 0x486;
/// CR0 bits that VMX operation allows set.
pub const VMX_CR0_FIXED1: u32 = 0x487;
/// CR4 bits that VMX operation needs set.
pub const VMX_CR4_FIXED0: u32 = 0x488;
/// CR4 bits that VMX operation allows set.
pub const VMX_CR4_FIXED1: u32 = 0x489;
/// Secondary processor-based controls.
pub const VMX_SECONDARY: u32 = 0x48b;
/// What EPT and VPID can do.
pub const VMX_EPT_VPID: u32 = 0x48c;
/// Pin-based controls.
pub const VMX_TRUE_PIN: u32 = 0x48d;
/// Primary processor-based controls.
pub const VMX_TRUE_PRIMARY: u32 = 0x48e;
/// VM-exit controls.
pub const VMX_TRUE_EXIT: u32 = 0x48f;
/// VM-entry controls.
pub const VMX_TRUE_ENTRY: u32 = 0x490;
/// Processor trace: where output goes, a physical address (SDM 3C, 33.2.8; 32.2.7 in older editions).
pub const TRACE_OUTPUT: core::ops::RangeInclusive<u32> = 0x560..=0x561;
/// Processor trace: the other registers.
pub const TRACE: core::ops::RangeInclusive<u32> = 0x570..=0x58f;
/// Hardware feedback interface: a physical address, and its configuration (SDM 3B, 15.6).
pub const HARDWARE_FEEDBACK: core::ops::RangeInclusive<u32> = 0x17d0..=0x17d1;
/// Last number that is reserved for capability registers.
pub const VMX_LAST: u32 = 0x49f;
/// Interrupt command register in x2APIC mode.
pub const X2APIC_ICR: u32 = 0x830;
/// Extended features.
pub const EFER: u32 = 0xc000_0080;
/// SYSCALL and SYSRET selectors.
pub const STAR: u32 = 0xc000_0081;
/// SYSCALL entry point, 64-bit.
pub const LSTAR: u32 = 0xc000_0082;
/// SYSCALL entry point, compatibility mode.
pub const CSTAR: u32 = 0xc000_0083;
/// SYSCALL flag mask.
pub const SFMASK: u32 = 0xc000_0084;
/// SVM lock and disable bits.
pub const VM_CR: u32 = 0xc001_0114;
/// IGNNE.
pub const IGNNE: u32 = 0xc001_0115;
/// Where VMRUN saves the host's state.
pub const VM_HSAVE_PA: u32 = 0xc001_0117;
/// Key that unlocks VM_CR.
pub const SVM_KEY: u32 = 0xc001_0118;

/// `FEATURE_CONTROL` bits.
pub mod feature_control {
    /// The register cannot be written any more.
    pub const LOCK: u64 = 1 << 0;
    /// VMXON works outside of SMX operation.
    pub const VMX: u64 = 1 << 2;
}

/// `MTRR_CAP` fields (SDM 3A, 12.11.1).
pub mod mtrr_cap {
    /// Number of variable ranges.
    pub const VARIABLE: u64 = 0xff;
    /// There are fixed ranges.
    pub const FIXED: u64 = 1 << 8;
}

/// `MTRR_DEFAULT` fields (SDM 3A, 12.11.2.1).
pub mod mtrr_default {
    /// The type.
    pub const TYPE: u64 = 0xff;
    /// The fixed ranges count.
    pub const FIXED: u64 = 1 << 10;
    /// All of them count; otherwise all memory is uncacheable.
    pub const ENABLE: u64 = 1 << 11;
}

/// Fields of a variable range (SDM 3A, 12.11.2.3).
pub mod mtrr_variable {
    /// In the base: the type.
    pub const TYPE: u64 = 0xff;
    /// In the mask: the range counts.
    pub const VALID: u64 = 1 << 11;
}

/// EFER bits (APM 3.1.7).
pub mod efer {
    /// SYSCALL enabled.
    pub const SCE: u64 = 1 << 0;
    /// Long mode enabled.
    pub const LME: u64 = 1 << 8;
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute enabled.
    pub const NXE: u64 = 1 << 11;
    /// Secure virtual machine enabled.
    pub const SVME: u64 = 1 << 12;
    /// Segment limits are checked in long mode.
    pub const LMSLE: u64 = 1 << 13;
}

/// APIC_BASE bits (APM 16.3.1, 16.9).
pub mod apic_base {
    /// x2APIC mode.
    pub const EXTD: u64 = 1 << 10;
    /// Enabled.
    pub const ENABLE: u64 = 1 << 11;
}

/// VM_CR bits (APM 15.30.1).
pub mod vm_cr {
    /// The disable bit is locked.
    pub const LOCK: u64 = 1 << 3;
    /// SVM cannot be enabled.
    pub const SVMDIS: u64 = 1 << 4;
}
