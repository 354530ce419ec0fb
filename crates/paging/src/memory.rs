//! Where table pages live, and the small store of pages that an operation takes before it starts.

use crate::PagingError;
use addr::{Hfn, PAGE_SHIFT};

/// Access to table pages: the hypervisor's pool, or a test's vector.
///
/// Implementations may assume that `table` came from [`TableMemory::allocate`] and was not freed,
/// and that `index` is below [`ENTRIES`](crate::ENTRIES).
pub trait TableMemory {
    /// Reads one entry, as one aligned 8-byte load.
    fn read(&self, table: Hfn, index: usize) -> u64;
    /// Writes one entry, as one aligned 8-byte store that no later store overtakes.
    fn write(&mut self, table: Hfn, index: usize, entry: u64);
    /// A table page of zeros, or `None` if there is no more.
    fn allocate(&mut self) -> Option<Hfn>;
    /// Takes a table page back. It may be reused at once.
    fn free(&mut self, table: Hfn);
}

/// Table pages taken before an operation begins, so that it cannot fail half-way. They are linked
/// through their own first entries, which no CPU walks yet.
pub(crate) struct Reserve {
    head: Option<Hfn>,
}

impl Reserve {
    /// Takes `count` pages, or none.
    pub fn fill<M: TableMemory>(memory: &mut M, count: u64) -> Result<Self, PagingError> {
        let mut reserve = Self { head: None };
        for _ in 0..count {
            let Some(page) = memory.allocate() else {
                reserve.give_back(memory);
                return Err(PagingError::OutOfMemory);
            };
            memory.write(page, 0, link(reserve.head));
            reserve.head = Some(page);
        }
        Ok(reserve)
    }

    /// A page of zeros.
    pub fn take<M: TableMemory>(&mut self, memory: &mut M) -> Result<Hfn, PagingError> {
        let page = self.head.ok_or(PagingError::OutOfMemory)?;
        self.head = follow(memory.read(page, 0));
        memory.write(page, 0, 0);
        Ok(page)
    }

    /// Returns what was not used.
    pub fn give_back<M: TableMemory>(mut self, memory: &mut M) {
        while let Some(page) = self.head {
            self.head = follow(memory.read(page, 0));
            memory.free(page);
        }
    }
}

/// A link as an entry: bit 0 tells frame 0 from the end of the list.
const fn link(page: Option<Hfn>) -> u64 {
    match page {
        Some(page) => page.raw() << PAGE_SHIFT | 1,
        None => 0,
    }
}

const fn follow(link: u64) -> Option<Hfn> {
    if link == 0 { None } else { Some(Hfn::new(link >> PAGE_SHIFT)) }
}
