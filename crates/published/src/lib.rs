//! The published region: what the hypervisor lets its guest read, and never write. The latest
//! events, counters, the mode and the policy.
//!
//! It is an array of 8-byte words. The [`Region`] is the writer's side, a [`Reader`] the other; no
//! lock is between them. What always holds:
//!
//! - The writer waits for nobody. It overwrites the oldest record.
//! - A reader gets whole records in order, and is told how many it has lost. It never takes parts
//!   of two records for one.
//!
//! That rests on the order of accesses alone: the writer's stores are each a release, so another
//! CPU sees them in their order; the reader loads words in ascending order, each at once. A record's
//! slot begins with its stamp. The writer marks the stamp, writes the record, then sets the stamp to
//! the record's sequence number, which no other record ever has; a reader that finds the number
//! before and after it has read the rest has read that record.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod layout;
mod reader;
mod snapshot;
#[cfg(test)]
mod tests;
mod writer;

pub use layout::{BYTES, MAGIC, SLOTS, VERSION, WORDS};
pub use reader::{OpenError, Published, Reader, Words};
pub use snapshot::Snapshot;
pub use writer::Region;
