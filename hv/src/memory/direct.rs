//! The direct map: the subtree that maps the hypervisor's frames, in every CPU's space, by leaves of
//! 2 MiB wherever it can.
//!
//! What always holds:
//! - It is changed under the pool's lock, together with the owners ([`frames::DirectMap`]).
//! - A change takes its table pages from a small store, filled beforehand, so that it never calls
//!   back into the pool.
//! - A table page that was unlinked waits until every CPU has flushed, then goes back to the store.

use super::pool::{Tables, clear};
use super::{DIRECT_MAP, flush};
use crate::report;
use addr::{FrameRange, Hfn, HostPhysical, HostVirtual};
use arrayvec::ArrayVec;
use frames::NoTables;
use paging::{HostRights, Level, PageTable, PagingError, Removed, TableMemory, X86_64};

/// Table pages that are kept for a change: a split, or a single frame, takes one.
const ENOUGH: usize = 4;
/// Most table pages in the store: those, and all that one flush can return.
const MOST: usize = ENOUGH + 64;

/// See the module.
pub(super) struct Direct {
    table: PageTable<X86_64>,
    store: Store,
    /// Tables that CPUs may still walk, and the request that ends that.
    pending: Removed<X86_64>,
    request: u64,
}

/// Table pages at hand.
struct Store {
    pages: ArrayVec<Hfn, MOST>,
}

impl TableMemory for Store {
    fn read(&self, table: Hfn, index: usize) -> u64 {
        Tables.read(table, index)
    }

    fn write(&mut self, table: Hfn, index: usize, entry: u64) {
        Tables.write(table, index, entry);
    }

    fn allocate(&mut self) -> Option<Hfn> {
        let page = self.pages.pop()?;
        clear(FrameRange::with_count(page, 1));
        Some(page)
    }

    fn free(&mut self, table: Hfn) {
        // There is room: a flush returns at most what `MOST` allows for.
        let _ = self.pages.try_push(table);
    }
}

impl Direct {
    /// Maps all of `region`.
    pub fn new(region: FrameRange<HostPhysical>) -> Result<Self, PagingError> {
        let mut table = PageTable::new_subtree(&mut Tables, DIRECT_MAP.frame(), Level::Page1G)?;
        let (pages, rights) = (pages_of(region), HostRights::READ_WRITE);
        table.map(&mut Tables, pages, region.start, rights, Level::Page2M)?;
        let store = Store { pages: ArrayVec::new() };
        Ok(Self { table, store, pending: Removed::default(), request: 0 })
    }

    /// Makes it part of a CPU's space, for good.
    pub fn link_into(&mut self, root: &mut PageTable<X86_64>) -> Result<(), PagingError> {
        root.link(&mut self.store, &mut self.table)
    }

    /// Whether it has a frame.
    pub fn has(&self, frame: Hfn) -> bool {
        let page = pages_of(FrameRange::with_count(frame, 1)).start;
        self.table.walk(&self.store, page).is_some()
    }

    /// Covers a block that is not the pool's, executable too.
    #[cfg(feature = "planted")]
    pub fn cover(&mut self, block: FrameRange<HostPhysical>) -> Result<(), PagingError> {
        let rights = HostRights { execute: true, ..HostRights::READ_WRITE };
        self.table.map(&mut self.store, pages_of(block), block.start, rights, Level::Page2M)
    }

    /// Takes back the table pages that every CPU has forgotten.
    pub fn settle(&mut self) {
        let is_due = !self.pending.is_empty();
        if is_due && self.request <= flush::epochs().acknowledged() {
            // Every CPU has flushed for a request that was made after the last of them was unlinked.
            core::mem::take(&mut self.pending).release(&mut self.store, |due| due.acknowledged());
        } else if self.pending.is_full() {
            flush::epochs().request();
        }
    }

    /// Table pages that should be added to the store.
    pub fn lacks(&self) -> usize {
        ENOUGH.saturating_sub(self.store.pages.len())
    }

    /// Adds a table page to the store.
    pub fn add(&mut self, page: Hfn) {
        self.store.free(page);
    }

    /// A table page that the store has no need of.
    pub fn surplus(&mut self) -> Option<Hfn> {
        if self.store.pages.len() > ENOUGH { self.store.pages.pop() } else { None }
    }

    /// Notes what a change left. The flush for it is ownership's, or none is due.
    fn note(&mut self, removed: Removed<X86_64>) {
        if removed.is_empty() {
            return;
        }
        // `restore` and `settle` keep room. Should there be none, a page is lost, never reused early.
        drop(self.pending.join(removed));
        self.request = flush::epochs().covering();
    }
}

/// Where frames are in the direct map.
fn pages_of(frames: FrameRange<HostPhysical>) -> FrameRange<HostVirtual> {
    FrameRange::with_count(DIRECT_MAP.plus(frames.start.start().raw()).frame(), frames.count())
}

impl frames::DirectMap for Direct {
    fn split(&mut self, frames: FrameRange<HostPhysical>) -> Result<(), NoTables> {
        let size = Level::Page2M.frames();
        if frames.start.is_aligned(size) && frames.end.is_aligned(size) {
            return Ok(());
        }
        let split = self.table.split(&mut self.store, pages_of(frames), Level::Page4K);
        self.note(split.map_err(|_| NoTables)?);
        Ok(())
    }

    fn unmap(&mut self, frames: FrameRange<HostPhysical>) {
        match self.table.unmap(&mut self.store, pages_of(frames)) {
            Ok(removed) => self.note(removed),
            // Better no machine than a frame that stays within reach.
            Err(error) => report::fatal(format_args!("the direct map has a bug: {error}")),
        }
    }

    fn map(&mut self, frame: Hfn) -> Result<(), NoTables> {
        let page = pages_of(FrameRange::with_count(frame, 1));
        let (rights, level) = (HostRights::READ_WRITE, Level::Page4K);
        self.table.map(&mut self.store, page, frame, rights, level).map_err(|_| NoTables)
    }

    fn zero(&mut self, frames: FrameRange<HostPhysical>) {
        clear(frames);
    }

    fn restore(&mut self, block: FrameRange<HostPhysical>) -> Result<(), NoTables> {
        if self.pending.is_full() {
            return Err(NoTables);
        }
        let pages = pages_of(block);
        let (rights, level) = (HostRights::READ_WRITE, Level::Page2M);
        if self.table.map(&mut self.store, pages, block.start, rights, level).is_err() {
            // Some of it is mapped, and in use. So its table, which is there and has room for the
            // rest, is filled up, and then replaced by one store.
            for frame in block.iter() {
                if !self.has(frame) {
                    self.map(frame)?;
                }
            }
        }
        let removed = self.table.collapse(&mut self.store, pages, Level::Page2M);
        self.note(removed.map_err(|_| NoTables)?);
        Ok(())
    }
}
