//! Records on the event channel, hypervisor to host.
//!
//! Each record is a [`Header`] and `length` bytes of payload. A reader that meets anything but
//! [`MAGIC`] skips one byte and looks again. `sequence` counts from 1 without gaps, so a lost
//! record shows; pieces of a state ([`StatePart`]) are not counted.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First four bytes of every record: `RVEV`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"RVEV");
/// Longest payload in bytes.
pub const MAX_PAYLOAD: usize = 256;

/// Precedes every payload.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u32,
    /// A [`RecordKind`] as a number.
    pub kind: u16,
    /// Payload bytes that follow, at most [`MAX_PAYLOAD`].
    pub length: u16,
    /// 1, 2, 3, ...
    pub sequence: u64,
    /// Time-stamp counter of the reporting CPU.
    pub time: u64,
}

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RecordKind {
    /// UTF-8 text for the person who watches.
    Log = 1,
    /// A [`Violation`].
    Violation = 2,
    /// A [`LockReport`].
    Locked = 3,
    /// A [`Promotion`].
    Promoted = 4,
    /// UTF-8 text: the machine cannot go on; it powers off after this record.
    Fatal = 5,
    /// An [`Alias`].
    Alias = 6,
    /// A [`Succession`].
    Succession = 7,
    /// A [`StatePart`] and the bytes that it speaks of: a piece of a VM's protection state.
    State = 16,
}

impl RecordKind {
    /// The kind with this number.
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Log,
            2 => Self::Violation,
            3 => Self::Locked,
            4 => Self::Promoted,
            5 => Self::Fatal,
            6 => Self::Alias,
            7 => Self::Succession,
            16 => Self::State,
            _ => return None,
        })
    }
}

/// What was attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ViolationKind {
    /// Write to locked kernel text that is no patch site.
    WriteText = 0,
    /// Write to locked read-only data.
    WriteRodata = 1,
    /// Write to a patch site that is no legal step there.
    Patch = 2,
    /// Supervisor execution of a page that is not code.
    Execute = 3,
    /// Change of a pinned CR0 or CR4 bit.
    ControlRegister = 4,
    /// Change of a pinned model-specific register.
    Msr = 5,
    /// Load of GDTR, IDTR, LDTR or TR with another value.
    DescriptorTable = 6,
    /// Access to the hypervisor's memory, or to an address behind which there is nothing.
    OwnMemory = 7,
    /// INIT or SIPI to a CPU.
    CpuEscape = 8,
    /// An access that had to be completed by the hypervisor but is of no known form.
    Undecodable = 9,
    /// Read of a page that the kernel has asked to keep from being read.
    Read = 10,
    /// A step towards another kernel in place of the locked one.
    Kexec = 11,
    /// A step by which the platform around the CPU would let a CPU, memory or an interrupt out of the
    /// hypervisor's hands: chipset registers, sleep, messages that are more than interrupts. Never
    /// let through.
    Platform = 12,
}

impl ViolationKind {
    /// How many kinds there are.
    pub const COUNT: usize = 13;
    /// Every kind, in the order of its number.
    pub const ALL: [ViolationKind; Self::COUNT] = [
        ViolationKind::WriteText,
        ViolationKind::WriteRodata,
        ViolationKind::Patch,
        ViolationKind::Execute,
        ViolationKind::ControlRegister,
        ViolationKind::Msr,
        ViolationKind::DescriptorTable,
        ViolationKind::OwnMemory,
        ViolationKind::CpuEscape,
        ViolationKind::Undecodable,
        ViolationKind::Read,
        ViolationKind::Kexec,
        ViolationKind::Platform,
    ];
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
    /// Name in tables, JSON and the policy file.
    pub const fn name(self) -> &'static str {
        match self {
            ViolationKind::WriteText => "write-text",
            ViolationKind::WriteRodata => "write-rodata",
            ViolationKind::Patch => "patch",
            ViolationKind::Execute => "execute",
            ViolationKind::ControlRegister => "control-register",
            ViolationKind::Msr => "msr",
            ViolationKind::DescriptorTable => "descriptor-table",
            ViolationKind::OwnMemory => "own-memory",
            ViolationKind::CpuEscape => "cpu-escape",
            ViolationKind::Undecodable => "undecodable",
            ViolationKind::Read => "read",
            ViolationKind::Kexec => "kexec",
            ViolationKind::Platform => "platform",
        }
    }
}

/// What was done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Reported only; the attempt succeeded.
    Log = 0,
    /// Refused with #GP (an INIT or SIPI: dropped); the guest goes on.
    Deny = 1,
    /// Refused; the machine was stopped.
    Stop = 2,
}

impl Verdict {
    /// The verdict with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Log,
            1 => Self::Deny,
            2 => Self::Stop,
            _ => return None,
        })
    }
    /// Name in tables, JSON and the policy file.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Log => "log",
            Verdict::Deny => "deny",
            Verdict::Stop => "stop",
        }
    }
}

/// `register` of a [`Violation`] that is about no register.
pub const NO_REGISTER: u32 = u32::MAX;
/// An address field of a [`Violation`] that has no value.
pub const NO_ADDRESS: u64 = u64::MAX;

/// One attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Violation {
    /// VM number; 0 is the primary.
    pub vm: u16,
    /// vCPU number inside the VM.
    pub vcpu: u16,
    /// A [`ViolationKind`].
    pub kind: u8,
    /// A [`Verdict`].
    pub verdict: u8,
    /// Privilege level of the instruction, 0 to 3.
    pub cpl: u8,
    /// Always 0.
    pub reserved: u8,
    /// MSR number, or 0, 4 for CR0 and CR4, or the descriptor table (0 GDTR, 1 IDTR, 2 LDTR,
    /// 3 TR), by `kind`; [`NO_REGISTER`] elsewhere.
    pub register: u32,
    /// Bytes that the write would have changed, 0 for accesses that write nothing.
    pub size: u32,
    /// Guest-virtual address of the instruction.
    pub rip: u64,
    /// Guest-virtual address of the access, or [`NO_ADDRESS`].
    pub gva: u64,
    /// Guest-physical address of the access, or [`NO_ADDRESS`].
    pub gpa: u64,
    /// Value before: register contents, or up to 8 bytes of memory.
    pub old: u64,
    /// Value that was to be written.
    pub new: u64,
    /// Guest-virtual address of the kernel's `_text`, so that `rip` can be named; 0 if unknown.
    pub kernel_base: u64,
}

/// The kernel was locked, or its read-only data was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LockReport {
    /// Guest-virtual address of the kernel's `_text`.
    pub kernel_base: u64,
    /// Time-stamp ticks that the lock took, all vCPUs held.
    pub ticks: u64,
    /// Leaves of the guest's kernel half that were walked.
    pub leaves: u64,
    /// Frames locked as code.
    pub text_frames: u64,
    /// Frames locked as read-only data.
    pub rodata_frames: u64,
    /// Frames executable but not locked (init text while the kernel still boots).
    pub code_frames: u64,
    /// Frames that some alias can write.
    pub writable_frames: u64,
    /// Frames that one alias can write and another, or the same, can execute.
    pub conflicting_frames: u64,
    /// 1: kernel text. 2: read-only data as well.
    pub stage: u32,
    /// Paging levels of the guest, 4 or 5.
    pub levels: u32,
}

/// A page became code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Promotion {
    /// Guest-virtual address of the first page.
    pub gva: u64,
    /// Guest-physical address of the first page.
    pub gpa: u64,
    /// Pages promoted in this transaction.
    pub pages: u32,
    /// 0: unauthenticated.
    pub authority: u32,
}

/// A frame that is writable under one alias and executable under another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Alias {
    /// The frame's guest-physical address.
    pub gpa: u64,
    /// Readable aliases; exact below 7.
    pub readable: u8,
    /// Writable aliases; exact below 7.
    pub writable: u8,
    /// Executable aliases; exact below 3.
    pub executable: u8,
    /// Always 0.
    pub reserved: [u8; 5],
}

/// The kernel has left for another one that the policy names (kexec), which is not locked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Succession {
    /// Digest of the new kernel's file, as in its manifest.
    pub kernel_digest: u64,
    /// Guest-physical address that it was loaded at.
    pub gpa: u64,
}

/// Precedes a piece of a VM's protection state (crate `protection`). The pieces of one state come
/// in order, and the first has offset 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct StatePart {
    /// VM number; 0 is the primary.
    pub vm: u32,
    /// Bytes of the state before this piece.
    pub offset: u32,
    /// 1: the state ends with this piece.
    pub last: u32,
}
