//! Who owns a frame: the hypervisor's allocator, the slots of the windows through which it reaches
//! memory that it does not map, and one byte of state per guest frame.
//!
//! All three work on storage that the caller lends; nothing here allocates or touches the frames.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod audit;
mod pool;
mod states;
mod windows;

pub use audit::{Audit, AuditedLeaf, Finding};
pub use pool::{Pool, PoolError, bitmap_words};
pub use states::FrameStates;
pub use windows::{NotOpen, SLOTS, WindowSlots};
