//! Who owns a frame: the owners and all changes of owner, quarantine until every CPU has flushed,
//! which frames leave the direct map; secret memory; the slots of the
//! windows through which the hypervisor reaches memory that it does not map; one byte of state per
//! guest frame; and the audit.
//!
//! All of them work on storage that the caller lends; nothing here allocates or touches the frames.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod audit;
mod block;
mod direct_map;
mod epochs;
mod ownership;
mod quarantine;
mod rules;
mod secrets;
mod states;
mod windows;
mod word;

pub use audit::{Audit, AuditedLeaf, Broken, Finding, Machine, Region, Space, Use, Uses};
pub use block::Block;
pub use direct_map::{DirectMap, Leaves, NoTables};
pub use epochs::{Epochs, FlushDue, Place};
pub use ownership::{Ownership, OwnershipError};
pub use rules::{Enforced, Rules};
pub use secrets::{MOST_BLOCKS, SecretError, SecretHandle, SecretSlot, Secrets};
pub use states::FrameStates;
pub use windows::{NotOpen, SLOTS, WindowSlots};
pub use word::{FrameState, Owner, Word};
