//! What crosses the boundary between the hypervisor and its tasks: calls, messages, the page of
//! facts that a task starts with, and (in [`image`]) the file that a task is loaded from.
//!
//! A task runs at CPL 3 in root mode, in a page table of its own. It calls by `INT` [`VECTOR`] with
//! a [`Call`] in RAX and its arguments in RDI, RSI, RDX and R10. The answer comes in RAX: a number
//! from 0 on, or a [`CallError`] as a negative one, the other way round than Linux' errno. All other
//! registers are kept. Whatever a task passes is checked; a bad argument is an error for that task
//! and nothing else.

pub mod image;

use crate::policy;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Vector of the software interrupt by which a task calls. No hardware interrupt has a number below
/// 16 (APM volume 2, 16.6.2), and this one the CPU itself never raises.
pub const VECTOR: u8 = 15;

/// First address that a task can use: 1 GiB. What lies below is the hypervisor's.
pub const START: u64 = 1 << 30;
/// One past the last address that a task can use: 512 GiB.
pub const END: u64 = 512 << 30;
/// Where the page of facts ([`Info`]) is, read-only. Its address is in RDI at the start.
pub const INFO: u64 = END - (1 << 21);
/// One past the highest byte of the stack, at which RSP starts.
pub const STACK_TOP: u64 = END - (2 << 21);
/// Size of the stack in bytes. The page below is never mapped.
pub const STACK_BYTES: u64 = 64 << 10;

/// Most pages that one call maps or unmaps.
pub const MOST_PAGES: u64 = 512;
/// Most bytes of one call of [`Call::Log`].
pub const MOST_BYTES: u64 = 4096;

/// The calls, by the number in RAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Call {
    /// `(address, bytes)`: puts a line of UTF-8 on the event channel, cut at 200 bytes.
    Log = 0,
    /// `(address, pages, rights)`: maps zeroed memory at a page address; see [`rights`]. Never
    /// executable. Counts against the quota.
    Map = 1,
    /// `(address, pages)`: unmaps memory of the task, all of it mapped and none of it secret, and
    /// gives it back. A task that unmaps what it runs on ends by a fault.
    Unmap = 2,
    /// `(kind, token, value)`: tells the hypervisor something; see [`Said`].
    Send = 3,
    /// `(address)`: waits for a [`Message`] and stores it there. Answers its kind.
    Wait = 4,
    /// `(bytes)`: makes secret memory and answers its handle.
    SecretCreate = 5,
    /// `(handle, address)`: maps a secret, as a whole, writable and never executable, at an address
    /// that is a multiple of 2 MiB.
    SecretMap = 6,
    /// `(handle)`: unmaps a secret. It keeps its contents.
    SecretUnmap = 7,
    /// `(handle)`: unmaps a secret if it is mapped, and ends it. Its memory is zeroed.
    SecretDestroy = 8,
    /// `(grant, offset, address, bytes)`: copies out of the page of guest memory that the latest
    /// message granted, and answers the number of bytes.
    GuestRead = 9,
    /// `(code)`: the task has ended.
    Exit = 10,
}

impl Call {
    /// How many there are.
    pub const COUNT: usize = 11;
    /// Every call, by number.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Log,
        Self::Map,
        Self::Unmap,
        Self::Send,
        Self::Wait,
        Self::SecretCreate,
        Self::SecretMap,
        Self::SecretUnmap,
        Self::SecretDestroy,
        Self::GuestRead,
        Self::Exit,
    ];

    /// The call with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|call| *call as u64 == number)
    }

    /// Name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Map => "map",
            Self::Unmap => "unmap",
            Self::Send => "send",
            Self::Wait => "wait",
            Self::SecretCreate => "secret-create",
            Self::SecretMap => "secret-map",
            Self::SecretUnmap => "secret-unmap",
            Self::SecretDestroy => "secret-destroy",
            Self::GuestRead => "guest-read",
            Self::Exit => "exit",
        }
    }
}

/// Bits of the rights that [`Call::Map`] takes. Reading is always allowed.
pub mod rights {
    /// The memory can be written.
    pub const WRITE: u64 = 1 << 0;
    /// The memory can be executed: refused with [`super::CallError::Denied`], since no page of a
    /// task becomes code after the start.
    pub const EXECUTE: u64 = 1 << 1;
}

/// Why a call was refused; nothing was changed. The numbers are Linux' errno values, negated in
/// RAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum CallError {
    /// EPERM: not allowed to this task, or to any.
    Denied = 1,
    /// EBADF: the handle or grant names nothing of this task's.
    BadHandle = 9,
    /// ENOMEM: the hypervisor's pool, or the task's quota, has not as much.
    NoMemory = 12,
    /// EFAULT: memory of the task that is not mapped, or not writable, or not the task's.
    BadAddress = 14,
    /// EEXIST: something is mapped there already.
    Exists = 17,
    /// EINVAL: a number that stands for nothing, is not aligned, or is out of range.
    Invalid = 22,
    /// ENFILE: the table of secrets is full.
    TooMany = 23,
    /// ENOSYS: there is no such call.
    NoCall = 38,
}

impl CallError {
    /// Every error.
    pub const ALL: [Self; 8] = [
        Self::Denied,
        Self::BadHandle,
        Self::NoMemory,
        Self::BadAddress,
        Self::Exists,
        Self::Invalid,
        Self::TooMany,
        Self::NoCall,
    ];

    /// What RAX holds.
    pub const fn raw(self) -> u64 {
        (self as i64).wrapping_neg().cast_unsigned()
    }
}

/// What RAX means after a call: the answer, or the error.
///
/// # Errors
/// Those of the call; a number that is no [`CallError`] is taken for [`CallError::Invalid`].
pub fn answer(rax: u64) -> Result<u64, CallError> {
    if rax.cast_signed() >= 0 {
        return Ok(rax);
    }
    let found = CallError::ALL.into_iter().find(|error| error.raw() == rax);
    Err(found.unwrap_or(CallError::Invalid))
}

/// Kinds of [`Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MessageKind {
    /// A record of the event channel ([`crate::event`]): `detail` is its kind, `token` its sequence
    /// number, the payload its own.
    Event = 1,
    /// As [`MessageKind::Event`] for a violation whose reaction the policy leaves to the warden.
    /// The vCPU waits for [`Said::Answer`] with the same token.
    Question = 2,
    /// The guest asks to pin bits of a control register (Heki's hypercall 13), or has tried to
    /// change a pinned one; the payload is a [`HekiExit`]. `detail` 1: to be answered, the request
    /// is not in force yet; 0: for information.
    Heki = 3,
    /// Messages were lost because the task did not fetch them: `detail` says how many.
    Lost = 4,
}

impl MessageKind {
    /// The kind with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Event, Self::Question, Self::Heki, Self::Lost]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

/// Longest payload of a message in bytes.
pub const MAX_PAYLOAD: usize = 88;

/// From the hypervisor to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Message {
    /// A [`MessageKind`].
    pub kind: u32,
    /// By kind.
    pub detail: u32,
    /// Names the message in an answer; by kind.
    pub token: u64,
    /// Time-stamp counter of the CPU that sent it, when what it tells of happened.
    pub time: u64,
    /// Guest memory that the task may look at until it waits again, 0 for none: the page that the
    /// message is about.
    pub grant: u32,
    /// Bytes of the grant.
    pub grant_length: u32,
    /// Bytes of `payload` in use.
    pub length: u32,
    /// Always 0.
    pub reserved: u32,
    /// By kind.
    pub payload: [u8; MAX_PAYLOAD],
}

/// What Heki's RFC v2 calls KVM_EXIT_HEKI_CONFIGURE and KVM_EXIT_HEKI_DENIAL, field by field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct HekiExit {
    /// [`HekiExit::CR0`] or [`HekiExit::CR4`] (KVM_HEKI_EXIT_REASON_CR0 and _CR4).
    pub reason: u64,
    /// Configure: the mask that the request pins. Denial: the value that was to be written.
    pub value: u64,
}

/// What a task tells the hypervisor by [`Call::Send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Said {
    /// The answer to a message with this token: `value` is a [`crate::event::Verdict`]. The first
    /// answer counts. For warden only.
    Answer = 0,
    /// The machine is to stop: `value` is the number of the kind of violation that is the reason.
    /// For warden only.
    Stop = 1,
}

impl Said {
    /// The thing said by this number.
    pub fn from_number(number: u64) -> Option<Self> {
        [Self::Answer, Self::Stop].into_iter().find(|said| *said as u64 == number)
    }
}

/// Facts that a task starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Info {
    /// Version of this page and of the calls: [`Info::VERSION`].
    pub version: u32,
    /// Number of the task.
    pub task: u32,
    /// The name that its image has.
    pub name: [u8; image::NAME_BYTES],
    /// By how much [`Message::time`] advances in a second, 0 if that is not known.
    pub ticks_per_second: u64,
    /// Frames that [`Call::Map`] may take in all.
    pub quota: u32,
    /// Blocks of 2 MiB that its secrets may take in all.
    pub secret_quota: u32,
    /// The policy in force.
    pub policy: policy::Record,
}

impl HekiExit {
    /// `reason`: CR0.
    pub const CR0: u64 = 1 << 0;
    /// `reason`: CR4.
    pub const CR4: u64 = 1 << 1;
}

impl Info {
    /// The version of this page and of the calls.
    pub const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back_to_what_they_stand_for() {
        for (number, call) in (0..).zip(Call::ALL) {
            assert_eq!(Call::from_number(number), Some(call));
        }
        assert_eq!(Call::from_number(Call::COUNT as u64), None);
        for error in CallError::ALL {
            assert_eq!(answer(error.raw()), Err(error));
        }
        assert_eq!(answer(7), Ok(7));
        assert_eq!(answer(u64::MAX - 4094), Err(CallError::Invalid));
    }

    #[test]
    fn what_the_hypervisor_maps_for_a_task_lies_apart() {
        const { assert!(START < STACK_TOP - STACK_BYTES && STACK_TOP < INFO && INFO < END) };
        const { assert!(size_of::<Info>() <= 4096 && size_of::<Message>() == 128) };
    }
}
