//! Where table pages live, and the small store of pages that an operation takes before it starts.

use crate::PagingError;
use addr::{Hfn, PAGE_SHIFT};

/// Entries in a cache line of 64 bytes.
pub const LINE: usize = 8;

/// Access to table pages: the hypervisor's pool, or a test's vector.
///
/// Implementations may assume that `table` came from [`TableMemory::allocate`] and was not freed,
/// and that `index` is below [`ENTRIES`](crate::ENTRIES).
pub trait TableMemory {
    /// Reads one entry, as one aligned 8-byte load.
    fn read(&self, table: Hfn, index: usize) -> u64;
    /// Writes one entry, as one aligned 8-byte store that no later store overtakes.
    fn write(&mut self, table: Hfn, index: usize, entry: u64);
    /// Reads the [`LINE`] entries of cache line `line` of a table, each as by
    /// [`TableMemory::read`]. Worth having where an entry's address takes time to find.
    fn read_line(&self, table: Hfn, line: usize) -> [u64; LINE] {
        core::array::from_fn(|offset| self.read(table, line * LINE + offset))
    }
    /// Writes the entries of a cache line in order, each as by [`TableMemory::write`].
    fn write_line(&mut self, table: Hfn, line: usize, entries: [u64; LINE]) {
        for (index, entry) in (line * LINE..).zip(entries) {
            self.write(table, index, entry);
        }
    }
    /// A table page of zeros, or `None` if there is no more.
    fn allocate(&mut self) -> Option<Hfn>;
    /// Takes a table page back. It may be reused at once.
    fn free(&mut self, table: Hfn);
}

/// Memory that allocates from pages donated beforehand only. Dropping it gives back those that
/// were not used.
///
/// Each operation donates itself what it needs before it changes anything. Several operations
/// that must all succeed, such as the same change to two views of a VM, are given one donation
/// for all: as many pages as [`PageTable::most_tables`](crate::PageTable::most_tables) or
/// [`MOST_SPLITS`](crate::MOST_SPLITS) say suffice, and none of them can lack memory.
///
/// The pages are linked through their own first entries, which no CPU walks yet.
#[derive(Debug)]
pub struct Donated<'a, M: TableMemory> {
    memory: &'a mut M,
    head: Option<Hfn>,
}

impl<'a, M: TableMemory> Donated<'a, M> {
    /// Takes `count` pages, or none.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn take(memory: &'a mut M, count: u64) -> Result<Self, PagingError> {
        let mut donated = Self { memory, head: None };
        for _ in 0..count {
            let page = donated.memory.allocate().ok_or(PagingError::OutOfMemory)?;
            donated.memory.write(page, 0, link(donated.head));
            donated.head = Some(page);
        }
        Ok(donated)
    }

    /// A donated page; its absence is an error like any other.
    pub(crate) fn next(&mut self) -> Result<Hfn, PagingError> {
        self.allocate().ok_or(PagingError::OutOfMemory)
    }
}

impl<M: TableMemory> TableMemory for Donated<'_, M> {
    fn read(&self, table: Hfn, index: usize) -> u64 {
        self.memory.read(table, index)
    }

    fn write(&mut self, table: Hfn, index: usize, entry: u64) {
        self.memory.write(table, index, entry);
    }

    fn read_line(&self, table: Hfn, line: usize) -> [u64; LINE] {
        self.memory.read_line(table, line)
    }

    fn write_line(&mut self, table: Hfn, line: usize, entries: [u64; LINE]) {
        self.memory.write_line(table, line, entries);
    }

    fn allocate(&mut self) -> Option<Hfn> {
        let page = self.head?;
        self.head = follow(self.memory.read(page, 0));
        self.memory.write(page, 0, 0);
        Some(page)
    }

    fn free(&mut self, table: Hfn) {
        self.memory.free(table);
    }
}

impl<M: TableMemory> Drop for Donated<'_, M> {
    fn drop(&mut self) {
        while let Some(page) = self.head {
            self.head = follow(self.memory.read(page, 0));
            self.memory.free(page);
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
