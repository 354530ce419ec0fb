//! The VM's second stage and the state of each of its pages.
//!
//! What always holds, outside of these methods: a page's rights for kernel and user code are those
//! that [`integrity::state::second_stage`] gives its state, except before the lock. Until then
//! the first instruction of user code faults; the kernel executes any RAM where the table tells it
//! from user code by address, and elsewhere what it is granted as it needs it ([`super::learn`]).
//! Every table maps each guest frame to the host frame of the same number, and the hypervisor's own
//! frames to nothing, but those that are published, which it maps read-only for good.

use super::Ram;
use super::separation::{Allowed, Separation};
use crate::cpu::apic;
use crate::memory::pool::{Block, Tables};
use crate::publish;
use crate::vendor::{SecondStage, SplitExecution, Vendor};
use addr::{FrameRange, Gfn, Gpa, GuestPhysical, Hfn, PAGE_SIZE};
use arrayvec::ArrayVec;
use frames::{Audit, AuditedLeaf, FrameStates, Space, Uses};
use integrity::Rights;
use integrity::rights::{Counters, storage_bytes};
use integrity::state::{Page, PageState, View};
use mtrr::{MemoryType, MemoryTypes};
use paging::guest::Buffers;
use paging::{Due, Flushed, Format, Level, PageTable, PagingError, Removed};

/// Most runs of executable pages that are withdrawn at a time.
const BATCH: usize = 64;
const READ_WRITE: Rights = Rights::READ.union(Rights::WRITE);

/// Second stage, page states, and room for counting aliases.
pub struct Memory<V: Vendor> {
    separation: Separation,
    /// The table of the kernel view, or the only one.
    kernel: PageTable<V::Table>,
    user: Option<PageTable<V::Table>>,
    ram: Ram,
    types: &'static MemoryTypes,
    states: FrameStates<'static, Page>,
    counters: &'static mut [u8],
    ram_end: Gfn,
    /// Room for walking the guest's tables.
    pub buffers: &'static mut Buffers,
}

const NO_MEMORY: &str = "the pool is too small for the second stage";

impl<V: Vendor> Memory<V> {
    /// Maps everything below `limit` but `own`, with the rights of the time before the lock and
    /// the memory types `types`.
    ///
    /// `ram_end` is the first frame past all RAM; states are kept below it.
    ///
    /// # Errors
    /// The pool is too small.
    pub fn new(
        limit: Gfn,
        ram_end: Gfn,
        ram: Ram,
        types: &'static MemoryTypes,
        own: &[FrameRange<GuestPhysical>],
        separation: Separation,
    ) -> Result<Self, &'static str> {
        let states = Block::take(ram_end.raw().div_ceil(PAGE_SIZE)).ok_or(NO_MEMORY)?.leak();
        let bytes = storage_bytes(ram_end.raw());
        let counters = Block::take(bytes.div_ceil(PAGE_SIZE)).ok_or(NO_MEMORY)?.leak();
        let buffers = Block::take(5).ok_or(NO_MEMORY)?.leak_as().ok_or(NO_MEMORY)?;
        let table = || identity::<V>(limit, &ram, types, own, separation).map_err(|_| NO_MEMORY);
        let memory = Self {
            separation,
            kernel: table()?,
            user: if separation == Separation::Views { Some(table()?) } else { None },
            states: FrameStates::new(Gfn::new(0), states, Page::new(PageState::Data)),
            counters,
            ram_end,
            buffers,
            ram,
            types,
        };
        for frame in own.iter().flat_map(|range| range.iter()) {
            let _ = memory.states.set(frame, Page::new(PageState::Own));
        }
        for frame in publish::guest_frames().iter() {
            let _ = memory.states.set(frame, Page::new(PageState::Published));
        }
        Ok(memory)
    }

    /// How user and supervisor execution are told apart.
    pub fn separation(&self) -> Separation {
        self.separation
    }

    /// Root of a view's table.
    pub fn root(&self, view: View) -> Hfn {
        match (view, &self.user) {
            (View::User, Some(user)) => user.root(),
            _ => self.kernel.root(),
        }
    }

    /// The state of a frame; `None` for device memory.
    pub fn state(&self, frame: Gfn) -> Option<PageState> {
        self.page(frame).map(|page| page.state)
    }

    /// State of a frame, and what a request withholds from it; `None` for device memory.
    pub fn page(&self, frame: Gfn) -> Option<Page> {
        self.states.get(frame)
    }

    /// The states of all frames, for reading without holding the memory.
    pub fn pages(&self) -> FrameStates<'static, Page> {
        self.states
    }

    /// Whether the kernel can execute `frame`.
    pub fn is_executable(&self, frame: Gfn) -> bool {
        self.kernel
            .walk(&Tables, frame)
            .is_some_and(|leaf| is_executable::<V>(leaf.rights, self.separation))
    }

    /// Room for walking the guest's tables and zeroed counters, together.
    pub fn survey(&mut self) -> (&mut Buffers, Counters<'_>) {
        (self.buffers, Counters::new(self.ram_end.raw(), self.counters))
    }

    /// Has every leaf of every view judged.
    pub fn audit(&self, audit: &mut Audit<'_, impl Uses + ?Sized>) {
        for table in [Some(&self.kernel), self.user.as_ref()].into_iter().flatten() {
            for (pages, leaf) in table.leaves(&Tables) {
                let rights = V::Table::allowed(leaf.rights, self.separation.split());
                let leaf = AuditedLeaf {
                    page: pages.start.raw(),
                    frames: FrameRange::with_count(leaf.frame, pages.count()),
                    size: leaf.level.frames(),
                    write: rights.contains(Rights::WRITE),
                    execute: rights.contains(Rights::EXECUTE),
                    user: true,
                };
                audit.leaf(Space::SecondStage(super::PRIMARY), leaf);
            }
        }
    }

    /// Lets the kernel execute `range`, before the lock. No flush of other CPUs is due: one that
    /// remembers less than is allowed faults and learns.
    ///
    /// # Errors
    /// Part of the range is not mapped; less than all of it was granted.
    pub fn grant_execute(&mut self, range: FrameRange<GuestPhysical>) -> Result<(), PagingError> {
        let removed = self.protect_kernel(range, Rights::all())?;
        // Nothing was taken away, and a split keeps its tables.
        removed.release(&mut Tables, |due| due.unnecessary());
        Ok(())
    }

    /// Lets kernel and user code execute `range`, before the lock.
    ///
    /// # Errors
    /// As for [`Memory::grant_execute`].
    pub fn grant_execute_to_all(
        &mut self,
        range: FrameRange<GuestPhysical>,
    ) -> Result<(), PagingError> {
        let removed = self.protect(range, Allowed::both(Rights::all()))?;
        // As above.
        removed.release(&mut Tables, |due| due.unnecessary());
        Ok(())
    }

    /// Withdraws from the kernel all execution that it has.
    ///
    /// # Errors
    /// Out of table pages.
    pub fn withdraw_grants(
        &mut self,
        mut flush: impl FnMut(Due<'_>) -> Flushed<'_>,
    ) -> Result<(), PagingError> {
        loop {
            let mut runs = ArrayVec::<FrameRange<GuestPhysical>, BATCH>::new();
            for (range, leaf) in self.kernel.leaves(&Tables) {
                if is_executable::<V>(leaf.rights, self.separation) {
                    match runs.last_mut() {
                        Some(last) if last.end == range.start => last.end = range.end,
                        // What does not fit is found in the next round.
                        _ => drop(runs.try_push(range)),
                    }
                }
            }
            if runs.is_empty() {
                return Ok(());
            }
            for range in &runs {
                self.protect_kernel(*range, READ_WRITE)?.release(&mut Tables, &mut flush);
            }
        }
    }

    /// Gives all RAM, which is data, the rights of data after the lock.
    ///
    /// # Errors
    /// Out of table pages.
    pub fn open_for_execution(
        &mut self,
        mut flush: impl FnMut(Due<'_>) -> Flushed<'_>,
    ) -> Result<(), PagingError> {
        let rights = Allowed::of(Page::new(PageState::Data), self.separation);
        for index in 0..self.ram.len() {
            let Some(range) = self.ram.get(index).copied() else { continue };
            self.protect(range, rights)?.release(&mut Tables, &mut flush);
        }
        Ok(())
    }

    /// Takes everything back to the time before the lock, for another kernel: all RAM is data of
    /// which nothing is withheld, and nothing was granted.
    ///
    /// # Errors
    /// Out of table pages.
    pub fn begin_anew(
        &mut self,
        mut flush: impl FnMut(Due<'_>) -> Flushed<'_>,
    ) -> Result<(), PagingError> {
        self.withdraw_grants(&mut flush)?;
        let rights = Allowed::at_first(self.separation);
        for index in 0..self.ram.len() {
            let Some(range) = self.ram.get(index).copied() else { continue };
            self.protect(range, rights)?.release(&mut Tables, &mut flush);
            for frame in range.iter() {
                let _ = self.states.set(frame, Page::new(PageState::Data));
            }
            self.collapse(range, &mut flush)?;
        }
        Ok(())
    }

    /// Gives every page of `range` a new state, and the rights that follow from it and from what is
    /// withheld in every view, then waits until no CPU uses the old ones.
    ///
    /// # Errors
    /// A page is not RAM of the guest, or out of table pages.
    pub fn set_state(
        &mut self,
        range: FrameRange<GuestPhysical>,
        state: PageState,
        mut flush: impl FnMut(Due<'_>) -> Flushed<'_>,
    ) -> Result<(), PagingError> {
        let mut rest = range;
        while let Some((run, page)) = self.next_run(&mut rest) {
            let page = page.map_or(Page::new(state), |page| page.with_state(state));
            self.set_page(run, page, &mut flush)?;
        }
        self.collapse(range, flush)
    }

    /// Takes from the front of `rest` the pages that are alike.
    fn next_run(
        &self,
        rest: &mut FrameRange<GuestPhysical>,
    ) -> Option<(FrameRange<GuestPhysical>, Option<Page>)> {
        let start = rest.start;
        if rest.is_empty() {
            return None;
        }
        let page = self.page(start);
        rest.start = rest.iter().find(|frame| self.page(*frame) != page).unwrap_or(rest.end);
        Some((FrameRange::new(start, rest.start), page))
    }

    /// Makes every page of `range` the same, then waits until no CPU uses the old rights.
    ///
    /// # Errors
    /// As for `set_state`.
    pub fn set_page(
        &mut self,
        range: FrameRange<GuestPhysical>,
        page: Page,
        mut flush: impl FnMut(Due<'_>) -> Flushed<'_>,
    ) -> Result<(), PagingError> {
        self.protect(range, Allowed::of(page, self.separation))?.release(&mut Tables, &mut flush);
        for frame in range.iter() {
            let _ = self.states.set(frame, page);
        }
        Ok(())
    }

    /// Takes write and execute rights of data pages away, so that they can be judged. The states
    /// stay; [`Memory::set_state`] ends it either way.
    ///
    /// # Errors
    /// As for `set_state`.
    pub fn freeze(
        &mut self,
        range: FrameRange<GuestPhysical>,
        mut flush: impl FnMut(Due<'_>) -> Flushed<'_>,
    ) -> Result<(), PagingError> {
        let mut rest = range;
        while let Some((run, page)) = self.next_run(&mut rest) {
            let withheld = page.map_or(Rights::empty(), |page| page.withheld);
            let allowed = Allowed::both(Rights::READ.difference(withheld));
            self.protect(run, allowed)?.release(&mut Tables, &mut flush);
        }
        Ok(())
    }

    /// Changes rights in all views; one flush serves them together.
    fn protect(
        &mut self,
        range: FrameRange<GuestPhysical>,
        allowed: Allowed,
    ) -> Result<Removed<V::Table>, PagingError> {
        let split = self.separation.split();
        let Some(user) = &mut self.user else {
            return protect::<V>(&mut self.kernel, range, allowed, split, self.types);
        };
        let (kernel_view, user_view) = (Allowed::both(allowed.kernel), Allowed::both(allowed.user));
        let mut removed = protect::<V>(&mut self.kernel, range, kernel_view, split, self.types)?;
        join(&mut removed, protect::<V>(user, range, user_view, split, self.types)?);
        Ok(removed)
    }

    /// Changes the kernel's rights before the lock, when user code executes nothing.
    fn protect_kernel(
        &mut self,
        range: FrameRange<GuestPhysical>,
        kernel: Rights,
    ) -> Result<Removed<V::Table>, PagingError> {
        let allowed = Allowed::before_the_lock(kernel, self.separation);
        protect::<V>(&mut self.kernel, range, allowed, self.separation.split(), self.types)
    }

    /// Makes large leaves again where whole blocks have the same rights.
    ///
    /// # Errors
    /// Part of the range is not mapped.
    pub fn collapse(
        &mut self,
        range: FrameRange<GuestPhysical>,
        mut flush: impl FnMut(Due<'_>) -> Flushed<'_>,
    ) -> Result<(), PagingError> {
        for table in [Some(&mut self.kernel), self.user.as_mut()].into_iter().flatten() {
            let removed = table.collapse(&mut Tables, range, Level::Page1G)?;
            if !removed.is_empty() {
                removed.release(&mut Tables, &mut flush);
            }
        }
        Ok(())
    }
}

fn is_executable<V: Vendor>(rights: <V::Table as Format>::Rights, separation: Separation) -> bool {
    V::Table::allowed(rights, separation.split()).contains(Rights::EXECUTE)
}

/// Changes rights in one table, a run of one memory type at a time. Those of what is published never
/// change: to whoever asks, it is not mapped, like the rest of the hypervisor's memory.
fn protect<V: Vendor>(
    table: &mut PageTable<V::Table>,
    range: FrameRange<GuestPhysical>,
    allowed: Allowed,
    split: Option<SplitExecution>,
    types: &MemoryTypes,
) -> Result<Removed<V::Table>, PagingError> {
    let published = publish::guest_frames();
    if range.overlaps(published) {
        return Err(PagingError::NotMapped { page: published.start.raw() });
    }
    let mut removed = Removed::default();
    for (run, memory_type) in types.runs(range) {
        let rights = V::Table::rights(allowed.kernel, allowed.user, split, memory_type);
        join(&mut removed, table.protect(&mut Tables, run, rights)?);
    }
    Ok(removed)
}

/// Joins what two changes of rights left. These unlink no table, so there is always room.
fn join<F: Format>(removed: &mut Removed<F>, other: Removed<F>) {
    drop(removed.join(other));
}

/// A table that maps every frame below `limit` but `own` to itself, the APIC read-only where writes
/// to it must be checked.
fn identity<V: Vendor>(
    limit: Gfn,
    ram: &Ram,
    types: &MemoryTypes,
    own: &[FrameRange<GuestPhysical>],
    separation: Separation,
) -> Result<PageTable<V::Table>, PagingError> {
    let split = separation.split();
    let mut table = PageTable::<V::Table>::new(&mut Tables)?;
    let mut start = Gfn::new(0);
    let ends = own.iter().copied().chain([FrameRange::with_count(limit, 0)]);
    for hole in ends {
        for (run, memory_type) in types.runs(FrameRange::new(start, hole.start)) {
            let rights = V::Table::rights(READ_WRITE, READ_WRITE, split, memory_type);
            table.map(&mut Tables, run, run.start.identity(), rights, Level::Page1G)?;
        }
        start = hole.end;
    }
    let published = publish::guest_frames();
    let rights = V::Table::rights(Rights::READ, Rights::READ, split, MemoryType::WriteBack);
    table.map(&mut Tables, published, published.start.identity(), rights, Level::Page4K)?;
    let registers = FrameRange::with_count(Gpa::new(apic::BASE).frame(), 1);
    let boot = Allowed::at_first(separation);
    let checked = (!V::holds_against_init()).then_some((registers, Allowed::both(Rights::READ)));
    for (range, allowed) in ram.iter().map(|range| (*range, boot)).chain(checked) {
        // No CPU has used the table yet.
        protect::<V>(&mut table, range, allowed, split, types)?
            .release(&mut Tables, |due| due.unnecessary());
    }
    Ok(table)
}
