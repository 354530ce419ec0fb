//! The guest's pages, for those that judge many of them and then change them: requests
//! ([`heki`]) and saved states ([`protection`]).

use super::Vm;
use super::lock::flusher;
use super::memory::Memory;
use crate::report;
use crate::vendor::Vendor;
use addr::{FrameRange, Gfn, GuestPhysical};
use integrity::state::Page;

/// The guest's pages, locked from the judgement to the last change. Changes are made on behalf of
/// CPU `index`.
pub struct Pages<'a, V: Vendor> {
    pub memory: &'a mut Memory<V>,
    pub vm: &'static Vm<V>,
    pub index: usize,
}

impl<V: Vendor> Pages<'_, V> {
    fn change(&mut self, run: FrameRange<GuestPhysical>, page: Page) {
        let flush = || flusher(self.vm, self.index);
        let set = self.memory.set_page(run, page, flush());
        // RAM is mapped, and the pool holds all tables that can be needed.
        if set.and_then(|()| self.memory.collapse(run, flush())).is_err() {
            report::fatal(format_args!("the second stage could not be changed by a request"));
        }
    }
}

impl<V: Vendor> heki::memory::Gate for Pages<'_, V> {
    fn page(&self, frame: Gfn) -> Option<Page> {
        self.memory.page(frame)
    }

    fn set(&mut self, run: FrameRange<GuestPhysical>, page: Page) {
        self.change(run, page);
    }
}

impl<V: Vendor> protection::restore::Gate for Pages<'_, V> {
    fn page(&self, frame: Gfn) -> Option<Page> {
        self.memory.page(frame)
    }

    fn is_ram(&self, frame: Gfn) -> bool {
        self.vm.is_ram(frame)
    }

    fn set(&mut self, run: FrameRange<GuestPhysical>, page: Page) {
        self.change(run, page);
    }
}
