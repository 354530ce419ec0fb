//! Page tables as objects: one implementation of map, unmap, protect, split, collapse, walk and
//! sharing for every table format of the machine, and a read-only walker for the tables that a
//! guest builds.
//!
//! What always holds in a [`PageTable`]:
//! - Every change reaches the table through single 8-byte stores, and after each of them every
//!   page translates either as before the operation or as after it: a CPU that walks the tables
//!   meanwhile sees nothing else. New tables are filled before they are linked.
//! - An operation takes all table pages it needs before it changes anything. An error means that
//!   nothing was changed and nothing was kept. What several operations need together can be
//!   [`Donated`] to them beforehand.
//! - A table page that was unlinked is not freed before the TLBs of all CPUs have been flushed:
//!   it stays in a [`Removed`], whose only exit makes the flush that is [`Due`].
//! - A subtree that several tables share is changed through its owner only, and is not destroyed
//!   while a table links to it.

#![no_std]
#![forbid(unsafe_code)]

mod change;
mod collapse;
mod cursor;
mod format;
pub mod guest;
mod lowest;
mod map;
mod memory;
mod removed;
mod run;
mod share;
mod span;
mod table;

pub use cursor::Cursor;
pub use format::{Entry, Format, HostRights, Level, Npt, NptExecute, NptRights, X86_64};
pub use format::{Ept, EptCapabilities, EptData, EptRights, EptUnsupported, Eptp, ExecuteOnly};
pub use memory::{Donated, LINE, TableMemory};
pub use removed::{Due, Flushed, Removed};
pub use table::{Leaf, PageTable};

/// Entries in a table page.
pub const ENTRIES: usize = 512;
/// Table pages that suffice for the splits of any unmap or protect: two at each edge.
pub const MOST_SPLITS: u64 = 4;
/// Bits of an index in a table page.
const INDEX_MASK: u64 = 511;

/// Why a page table operation was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PagingError {
    /// The pool of table pages is exhausted.
    #[error("no memory for a page table: enlarge the hypervisor's pool")]
    OutOfMemory,
    /// [`PageTable::map`] or [`PageTable::link`] met a page that is mapped already.
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
    /// A page lies in a subtree that the table shares.
    #[error("page {page:#x} is in a shared subtree: change it through the subtree's owner")]
    Shared {
        /// Number of the first such page, in the input space.
        page: u64,
    },
    /// A range leaves the table or the 48-bit input space, crosses the hole between its two canonical halves,
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
