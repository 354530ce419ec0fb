//! Page tables as objects: one implementation of map, unmap, protect, collapse and walk for every
//! table format of the machine, and a read-only walker for the tables that a guest builds.
//!
//! What always holds in a [`PageTable`]:
//! - Every change reaches the table through single 8-byte stores, and after each of them every
//!   page translates either as before the operation or as after it: a CPU that walks the tables
//!   meanwhile sees nothing else. New tables are filled before they are linked.
//! - An operation takes all table pages it needs before it changes anything. An error means that
//!   nothing was changed and nothing was kept.
//! - A table page that was unlinked is not freed before the TLBs of all CPUs have been flushed:
//!   it stays in a [`Removed`], whose only exit takes a [`Flushed`].

#![no_std]
#![forbid(unsafe_code)]

mod change;
mod collapse;
mod format;
pub mod guest;
mod map;
mod memory;
mod removed;
mod span;
mod table;

pub use format::{Entry, Format, HostRights, Level, Npt, NptExecute, NptRights, X86_64};
pub use format::{Ept, EptCapabilities, EptData, EptRights, EptUnsupported, Eptp, ExecuteOnly};
pub use memory::TableMemory;
pub use removed::{Flushed, Removed};
pub use table::{Leaf, PageTable};

/// Entries in a table page.
pub const ENTRIES: usize = 512;
/// Bits of an index in a table page.
const INDEX_MASK: u64 = 511;

/// Why a page table operation was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PagingError {
    /// The pool of table pages is exhausted.
    #[error("no memory for a page table: enlarge the hypervisor's pool")]
    OutOfMemory,
    /// [`PageTable::map`] met a page that is mapped already.
    #[error("page {page:#x} is mapped already: unmap it first")]
    AlreadyMapped {
        /// Number of the first such page, in the input space.
        page: u64,
    },
    /// [`PageTable::protect`] met a page that is not mapped.
    #[error("page {page:#x} is not mapped: map it first")]
    NotMapped {
        /// Number of the first such page, in the input space.
        page: u64,
    },
    /// A range leaves the 48-bit input space, crosses the hole between its two canonical halves,
    /// or its output leaves the 52-bit physical space.
    #[error("pages {start:#x} to {end:#x} cannot be expressed in this table")]
    OutOfRange {
        /// First page number of the range.
        start: u64,
        /// One past its last page number.
        end: u64,
    },
}

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;
