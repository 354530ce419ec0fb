//! Hypercalls by which a guest kernel asks for its own protection: the interface of "Hypervisor-
//! Enforced Kernel Integrity", RFC v2 (Linux kernel mailing list, November 2023).
//!
//! | question | module |
//! |---|---|
//! | which bits of CR0 and CR4 does the guest want pinned? | [`control`] |
//! | which pages are on the list, and is the list well-formed? | [`list`] |
//! | what does a request make of a page, and may it? | [`memory`] |
//!
//! What always holds: a request is copied once, judged whole, and only then applied, so that a
//! refused one changes nothing. What a page allows after a request is what was asked for and
//! Ravelin allows as well; nothing that the lock fixed becomes wider. Work is bounded by the
//! constants of [`list`] and the guest's RAM.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod control;
pub mod list;
pub mod memory;

/// Number of the hypercall that pins bits of a control register.
pub const LOCK_CONTROL_REGISTER: u64 = 13;
/// Number of the hypercall that sets the rights of pages.
pub const PROTECT_MEMORY: u64 = 14;
/// What the version call answers.
pub const VERSION: u64 = 1;

/// Why a hypercall is refused, by KVM's number (Linux, `include/uapi/linux/kvm_para.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    /// The caller is not at CPL 0, or the request would widen what is fixed.
    NotPermitted = 1,
    /// The list is longer than [`list::MOST_PAGES`], or a page of it claims more entries than it
    /// holds.
    TooBig = 7,
    /// The list is not in the guest's RAM, or a range to protect is not.
    Fault = 14,
    /// A field has a value that stands for nothing, or the request contradicts itself.
    Invalid = 22,
    /// The right cannot be withheld on this machine.
    Unsupported = 95,
    /// There is no hypercall of this number.
    NoSuchCall = 1000,
}

impl Refusal {
    /// The value for RAX: the number, negative.
    pub const fn to_rax(self) -> u64 {
        (self as u64).wrapping_neg()
    }
}
