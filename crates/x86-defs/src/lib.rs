//! What the manuals define and nobody may change: control-register bits, MSR numbers, the VMCB
//! and its exit codes. Data only; no instruction is executed here.
//!
//! "APM" is AMD's Architecture Programmer's Manual, volume 2; "SDM" is Intel's.

#![no_std]
#![forbid(unsafe_code)]

pub mod msr;
pub mod svm;
pub mod vmx;

/// CR0 bits (APM 3.1.1).
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1 << 0;
    /// Monitor coprocessor.
    pub const MP: u64 = 1 << 1;
    /// Emulate the x87.
    pub const EM: u64 = 1 << 2;
    /// Task switched.
    pub const TS: u64 = 1 << 3;
    /// Extension type, always 1.
    pub const ET: u64 = 1 << 4;
    /// Native x87 errors.
    pub const NE: u64 = 1 << 5;
    /// Supervisor writes obey read-only pages.
    pub const WP: u64 = 1 << 16;
    /// User code's unaligned accesses fault where it asks for that.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits (APM 3.1.3).
pub mod cr4 {
    /// Virtual-8086 mode extensions.
    pub const VME: u64 = 1 << 0;
    /// Protected-mode virtual interrupts.
    pub const PVI: u64 = 1 << 1;
    /// Physical-address extension.
    pub const PAE: u64 = 1 << 5;
    /// User code reads performance counters.
    pub const PCE: u64 = 1 << 8;
    /// SSE state is saved by FXSAVE.
    pub const OSFXSR: u64 = 1 << 9;
    /// SSE exceptions are reported as #XF.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// User code cannot store descriptor-table registers.
    pub const UMIP: u64 = 1 << 11;
    /// Five-level paging.
    pub const LA57: u64 = 1 << 12;
    /// VMX enabled.
    pub const VMXE: u64 = 1 << 13;
    /// Safer mode extensions enabled.
    pub const SMXE: u64 = 1 << 14;
    /// FS and GS bases can be written by instructions.
    pub const FSGSBASE: u64 = 1 << 16;
    /// XSAVE enabled.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor cannot execute user pages.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor cannot touch user pages unless RFLAGS.AC.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys.
    pub const PKE: u64 = 1 << 22;
    /// Control-flow enforcement.
    pub const CET: u64 = 1 << 23;
}

/// RFLAGS bits (APM 3.1.6).
pub mod rflags {
    /// Always 1.
    pub const RESERVED: u64 = 1 << 1;
    /// Trap after the next instruction.
    pub const TF: u64 = 1 << 8;
    /// Interrupts are accepted.
    pub const IF: u64 = 1 << 9;
    /// Privilege that port instructions take, two bits.
    pub const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume flag.
    pub const RF: u64 = 1 << 16;
}

/// Exception vectors (APM 8.2).
pub mod vector {
    /// Debug.
    pub const DB: u8 = 1;
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
}
