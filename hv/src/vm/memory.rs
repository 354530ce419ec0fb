//! The VM's second stage and the state of each of its pages.
//!
//! What always holds, outside of these methods: a page's rights for kernel and user code are those
//! that [`integrity::state::second_stage`] gives its state, except before the lock. Until then
//! user code executes nothing; the kernel executes any RAM where the table tells it from user
//! code, and elsewhere what it is granted as it needs it ([`super::learn`]). Every table maps each
//! guest frame to the host frame of the same number, and the hypervisor's own frames to nothing.

use super::Ram;
use super::separation::{Allowed, Separation};
use crate::cpu::apic;
use crate::memory::pool::{Block, Tables};
use crate::vendor::{SecondStage, Vendor};
use addr::{FrameRange, Gfn, Gpa, GuestPhysical, Hfn, PAGE_SIZE};
use arrayvec::ArrayVec;
use core::sync::atomic::AtomicU8;
use frames::{Audit, AuditedLeaf, Finding, FrameStates};
use integrity::Rights;
use integrity::rights::Counters;
use integrity::state::{PageState, View};
use paging::guest::Buffers;
use paging::{Due, Flushed, Format, Level, PageTable, PagingError, Removed};
use zerocopy::FromBytes;

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
    states: FrameStates<'static, PageState>,
    counters: &'static mut [u8],
    /// Room for walking the guest's tables.
    pub buffers: &'static mut Buffers,
}

const NO_MEMORY: &str = "the pool is too small for the second stage";

impl<V: Vendor> Memory<V> {
    /// Maps everything below `limit` but `own`, with the rights of the time before the lock.
    ///
    /// `ram_end` is the first frame past all RAM; states are kept below it.
    ///
    /// # Errors
    /// The pool is too small.
    pub fn new(
        limit: Gfn,
        ram_end: Gfn,
        ram: Ram,
        own: &[FrameRange<GuestPhysical>],
        separation: Separation,
    ) -> Result<Self, &'static str> {
        let states = Block::take(ram_end.raw().div_ceil(PAGE_SIZE)).ok_or(NO_MEMORY)?.leak();
        let states = <[AtomicU8]>::mut_from_bytes(states).map_err(|_| NO_MEMORY)?;
        let counters = Block::take(ram_end.raw().div_ceil(PAGE_SIZE)).ok_or(NO_MEMORY)?.leak();
        let buffers = Block::take(5).ok_or(NO_MEMORY)?.leak_as().ok_or(NO_MEMORY)?;
        let table = || identity::<V>(limit, &ram, own, separation).map_err(|_| NO_MEMORY);
        let memory = Self {
            separation,
            kernel: table()?,
            user: if separation == Separation::Views { Some(table()?) } else { None },
            states: FrameStates::new(Gfn::new(0), states, PageState::Data),
            counters,
            buffers,
            ram,
        };
        for frame in own.iter().flat_map(|range| range.iter()) {
            let _ = memory.states.set(frame, PageState::Own);
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
        self.states.get(frame)
    }

    /// Whether the kernel can execute `frame`.
    pub fn is_executable(&self, frame: Gfn) -> bool {
        self.kernel.walk(&Tables, frame).is_some_and(|leaf| is_executable::<V>(leaf.rights))
    }

    /// Room for walking the guest's tables and zeroed counters, together.
    pub fn survey(&mut self) -> (&mut Buffers, Counters<'_>) {
        (self.buffers, Counters::new(self.counters))
    }

    /// Judges every leaf of every view.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn audit(&self, audit: &mut Audit<'_>) -> Result<(), Finding> {
        for table in [Some(&self.kernel), self.user.as_ref()].into_iter().flatten() {
            for (pages, leaf) in table.leaves(&Tables) {
                let rights = V::Table::allowed(leaf.rights);
                let (write, execute) =
                    (rights.contains(Rights::WRITE), rights.contains(Rights::EXECUTE));
                let frames = FrameRange::with_count(leaf.frame, pages.count());
                audit.guest_leaf(AuditedLeaf { frames, write, execute })?;
            }
        }
        Ok(())
    }

    /// Lets the kernel execute `range`, before the lock. No flush of other CPUs is due: one that
    /// remembers less than is allowed faults and learns.
    ///
    /// # Errors
    /// Part of the range is not mapped; nothing was changed.
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

    /// Withdraws from the kernel all execution that it has, and collapses what was split for it.
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
                if is_executable::<V>(leaf.rights) {
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
        let rights = Allowed::of(PageState::Data, self.separation);
        for index in 0..self.ram.len() {
            let Some(range) = self.ram.get(index).copied() else { continue };
            self.protect(range, rights)?.release(&mut Tables, &mut flush);
        }
        Ok(())
    }

    /// Gives every page of `range` a new state, and the rights that follow from it in every view,
    /// then waits until no CPU uses the old ones.
    ///
    /// # Errors
    /// A page is not RAM of the guest, or out of table pages.
    pub fn set_state(
        &mut self,
        range: FrameRange<GuestPhysical>,
        state: PageState,
        mut flush: impl FnMut(Due<'_>) -> Flushed<'_>,
    ) -> Result<(), PagingError> {
        self.protect(range, Allowed::of(state, self.separation))?.release(&mut Tables, &mut flush);
        for frame in range.iter() {
            let _ = self.states.set(frame, state);
        }
        self.collapse(range, flush)
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
        self.protect(range, Allowed::both(Rights::READ))?.release(&mut Tables, &mut flush);
        Ok(())
    }

    /// Changes rights in all views; one flush serves them together.
    fn protect(
        &mut self,
        range: FrameRange<GuestPhysical>,
        allowed: Allowed,
    ) -> Result<Removed<V::Table>, PagingError> {
        let ram = self.is_ram(range);
        let Some(user) = &mut self.user else {
            let rights = V::Table::rights(allowed.kernel, allowed.user, ram);
            return self.kernel.protect(&mut Tables, range, rights);
        };
        let view = |rights| V::Table::rights(rights, rights, ram);
        let mut removed = self.kernel.protect(&mut Tables, range, view(allowed.kernel))?;
        let other = user.protect(&mut Tables, range, view(allowed.user))?;
        // Changing rights unlinks no table, so there is always room.
        drop(removed.join(other));
        Ok(removed)
    }

    /// Changes the kernel's rights before the lock, when user code executes nothing.
    fn protect_kernel(
        &mut self,
        range: FrameRange<GuestPhysical>,
        kernel: Rights,
    ) -> Result<Removed<V::Table>, PagingError> {
        let allowed = Allowed::before_the_lock(kernel, self.separation);
        let rights = V::Table::rights(allowed.kernel, allowed.user, self.is_ram(range));
        self.kernel.protect(&mut Tables, range, rights)
    }

    /// Whether all of `range` is RAM.
    fn is_ram(&self, range: FrameRange<GuestPhysical>) -> bool {
        self.ram.iter().any(|ram| ram.start <= range.start && range.end <= ram.end)
    }

    /// Makes large leaves again where whole blocks have the same rights.
    fn collapse(
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

fn is_executable<V: Vendor>(rights: <V::Table as Format>::Rights) -> bool {
    V::Table::allowed(rights).contains(Rights::EXECUTE)
}

/// A table that maps every frame below `limit` but `own` to itself, the APIC read-only.
fn identity<V: Vendor>(
    limit: Gfn,
    ram: &Ram,
    own: &[FrameRange<GuestPhysical>],
    separation: Separation,
) -> Result<PageTable<V::Table>, PagingError> {
    let device = |rights| V::Table::rights(rights, rights, false);
    let mut table = PageTable::<V::Table>::new(&mut Tables)?;
    let mut start = Gfn::new(0);
    let ends = own.iter().copied().chain([FrameRange::with_count(limit, 0)]);
    for hole in ends {
        let range = FrameRange::new(start, hole.start);
        if !range.is_empty() {
            let output = start.identity();
            table.map(&mut Tables, range, output, device(READ_WRITE), Level::Page1G)?;
        }
        start = hole.end;
    }
    let registers = FrameRange::with_count(Gpa::new(apic::BASE).frame(), 1);
    let kernel = if separation == Separation::Table { Rights::all() } else { READ_WRITE };
    let boot = Allowed::before_the_lock(kernel, separation);
    let boot = V::Table::rights(boot.kernel, boot.user, true);
    for (range, rights) in
        ram.iter().map(|range| (*range, boot)).chain([(registers, device(Rights::READ))])
    {
        // No CPU has used the table yet.
        table.protect(&mut Tables, range, rights)?.release(&mut Tables, |due| due.unnecessary());
    }
    Ok(table)
}
