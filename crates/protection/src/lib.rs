//! The protection state of a VM as a record of bytes: policy, how far the lock has come, pins, and
//! the state of every page with what requests withhold from it. Saved on one machine, it is looked
//! at anywhere, and restored where a VM goes on with the memory that it had.
//!
//! | question | module |
//! |---|---|
//! | what do the bytes mean, and are they whole? | [`record`] |
//! | is a state weaker than another? | [`compare`] |
//! | may a saved state take the place of the one in force? | [`restore`] |
//!
//! What always holds: a record of which one byte is another is refused; a state that is restored
//! allows nothing that the one in force does not; and a refused one changes nothing.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod compare;
pub mod record;
pub mod restore;

use abi::MAX_CPUS;
use abi::hypercall::SupervisorMode;
use abi::policy::Policy;
use integrity::pins::{ControlPin, Pins};

/// Where a kernel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Guest-virtual address of `_text`.
    pub gva: u64,
    /// Guest-physical address of `_text`.
    pub gpa: u64,
}

/// Everything but the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The policy in force.
    pub policy: Policy,
    /// 0: not locked. 1: kernel text and registers. 2: read-only data too.
    pub stage: u8,
    /// How user and supervisor execution are told apart.
    pub separation: SupervisorMode,
    /// Leaves can allow execution and not reading.
    pub execute_only: bool,
    /// Frames that have a state: those below the end of RAM.
    pub frames: u64,
    /// The digest of the kernel's file, as the manifest has it.
    pub kernel_digest: u64,
    /// Where the kernel is, once it is locked.
    pub kernel: Option<Kernel>,
    /// Pins on CR0 and CR4 that the guest asked for.
    pub requested: [ControlPin; 2],
    /// The pins of each vCPU that is locked.
    pub vcpus: [Option<Pins>; MAX_CPUS],
}

#[cfg(test)]
mod tests;
