//! Table pages in a vector, with a history of all stores and a limit.

use crate::{ENTRIES, TableMemory};
use addr::Hfn;
use std::vec::Vec;

/// Number of the first table page, so that no table is frame 0.
const FIRST: u64 = 0x1000;

/// One store.
#[derive(Clone, Copy, Debug)]
pub struct Store {
    pub table: Hfn,
    pub index: usize,
    pub entry: u64,
}

#[derive(Clone)]
struct Page {
    entries: [u64; ENTRIES],
    used: bool,
}

/// See the module. Using a page that is not allocated panics.
#[derive(Clone)]
pub struct FakeMemory {
    pages: Vec<Page>,
    free: Vec<Hfn>,
    /// Pages that may still be allocated.
    pub allowance: usize,
    /// Stores since the history was last taken.
    pub history: Vec<Store>,
    /// Pages freed since it was last cleared.
    pub freed: Vec<Hfn>,
}

impl FakeMemory {
    pub fn new() -> Self {
        Self {
            pages: Vec::new(),
            free: Vec::new(),
            allowance: usize::MAX,
            history: Vec::new(),
            freed: Vec::new(),
        }
    }

    pub fn used(&self) -> usize {
        self.pages.len() - self.free.len()
    }

    pub fn is_used(&self, table: Hfn) -> bool {
        self.pages.get(Self::slot(table)).is_some_and(|page| page.used)
    }

    /// What is in all pages in use.
    pub fn contents(&self) -> Vec<(usize, [u64; ENTRIES])> {
        let pages = self.pages.iter().enumerate().filter(|(_, page)| page.used);
        pages.map(|(number, page)| (number, page.entries)).collect()
    }

    fn slot(table: Hfn) -> usize {
        usize::try_from(table.raw() - FIRST).unwrap()
    }
}

impl TableMemory for FakeMemory {
    fn read(&self, table: Hfn, index: usize) -> u64 {
        let page = &self.pages[Self::slot(table)];
        assert!(page.used, "reads {table:?}, which is free");
        page.entries[index]
    }

    fn write(&mut self, table: Hfn, index: usize, entry: u64) {
        let page = &mut self.pages[Self::slot(table)];
        assert!(page.used, "writes {table:?}, which is free");
        page.entries[index] = entry;
        self.history.push(Store { table, index, entry });
    }

    fn allocate(&mut self) -> Option<Hfn> {
        self.allowance = self.allowance.checked_sub(1)?;
        let page = Page { entries: [0; ENTRIES], used: true };
        if let Some(table) = self.free.pop() {
            self.pages[Self::slot(table)] = page;
            return Some(table);
        }
        self.pages.push(page);
        Some(Hfn::new(FIRST + self.pages.len() as u64 - 1))
    }

    fn free(&mut self, table: Hfn) {
        let page = &mut self.pages[Self::slot(table)];
        assert!(page.used, "frees {table:?} twice");
        page.used = false;
        self.free.push(table);
        self.freed.push(table);
    }
}
