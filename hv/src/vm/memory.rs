//! The VM's second stage and the state of each of its pages.
//!
//! What always holds, outside of these methods: a page's rights in both views are those that
//! [`integrity::state::second_stage`] gives its state, except before the lock, when the kernel
//! view grants execution as it is needed ([`super::learn`]). Both tables map every guest frame to
//! the host frame of the same number, and the hypervisor's own frames to nothing.

use crate::cpu::apic;
use crate::memory::pool::{Block, Tables};
use addr::{FrameRange, Gfn, Gpa, GuestPhysical, Hfn, PAGE_SIZE};
use core::sync::atomic::AtomicU8;
use frames::{Audit, AuditedLeaf, Finding, FrameStates};
use integrity::Rights;
use integrity::rights::Counters;
use integrity::state::{PageState, View, second_stage};
use paging::guest::Buffers;
use paging::{Flushed, Level, Npt, NptRights, PageTable, PagingError, Removed};
use zerocopy::FromBytes;

/// Most runs of executable pages that are withdrawn at a time.
const BATCH: usize = 64;

/// Second stage, page states, and room for counting aliases.
pub struct Memory {
    kernel: PageTable<Npt>,
    user: Option<PageTable<Npt>>,
    states: FrameStates<'static, PageState>,
    counters: &'static mut [u8],
    /// Room for walking the guest's tables.
    pub buffers: &'static mut Buffers,
}

const NO_MEMORY: &str = "the pool is too small for the second stage";

impl Memory {
    /// Maps everything below `limit` but `own`, read-write, and the APIC read-only.
    ///
    /// `ram_end` is the first frame past all RAM; states are kept below it.
    ///
    /// # Errors
    /// The pool is too small.
    pub fn new(
        limit: Gfn,
        ram_end: Gfn,
        own: &[FrameRange<GuestPhysical>],
        two_views: bool,
    ) -> Result<Self, &'static str> {
        let states = Block::take(ram_end.raw().div_ceil(PAGE_SIZE)).ok_or(NO_MEMORY)?.leak();
        let states = <[AtomicU8]>::mut_from_bytes(states).map_err(|_| NO_MEMORY)?;
        let counters = Block::take(ram_end.raw().div_ceil(PAGE_SIZE)).ok_or(NO_MEMORY)?.leak();
        let buffers = Block::take(5).ok_or(NO_MEMORY)?.leak_as().ok_or(NO_MEMORY)?;
        let memory = Self {
            kernel: identity(limit, own).map_err(|_| NO_MEMORY)?,
            user: if two_views { Some(identity(limit, own).map_err(|_| NO_MEMORY)?) } else { None },
            states: FrameStates::new(Gfn::new(0), states, PageState::Data),
            counters,
            buffers,
        };
        for frame in own.iter().flat_map(|range| range.iter()) {
            let _ = memory.states.set(frame, PageState::Own);
        }
        Ok(memory)
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

    /// Whether the kernel view (or the only one) lets `frame` be executed.
    pub fn is_executable(&self, frame: Gfn) -> bool {
        self.kernel.walk(&Tables, frame).is_some_and(|leaf| leaf.rights.execute)
    }

    /// Room for walking the guest's tables and zeroed counters, together.
    pub fn survey(&mut self) -> (&mut Buffers, Counters<'_>) {
        (self.buffers, Counters::new(self.counters))
    }

    /// Judges every leaf of both views.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn audit(&self, audit: &mut Audit<'_>) -> Result<(), Finding> {
        let mut verdict = Ok(());
        for table in [Some(&self.kernel), self.user.as_ref()].into_iter().flatten() {
            table.visit(&Tables, |pages, leaf| {
                let NptRights { write, execute, .. } = leaf.rights;
                let frames = FrameRange::with_count(leaf.frame, pages.count());
                verdict = verdict.and(audit.guest_leaf(AuditedLeaf { frames, write, execute }));
            });
        }
        verdict
    }

    /// Lets `range` be executed in the kernel view, before the lock. No flush of other CPUs is
    /// due: one that remembers less than is allowed faults and learns.
    ///
    /// # Errors
    /// Part of the range is not mapped; nothing was changed.
    pub fn grant_execute(&mut self, range: FrameRange<GuestPhysical>) -> Result<(), PagingError> {
        let removed = self.kernel.protect(&mut Tables, range, NptRights::ALL)?;
        // Nothing was taken away, and a split keeps its tables.
        removed.release(&mut Tables, Flushed::acknowledged());
        Ok(())
    }

    /// Withdraws all that was granted, and collapses what was split for it.
    ///
    /// # Errors
    /// Out of table pages.
    pub fn withdraw_grants(
        &mut self,
        mut flush: impl FnMut() -> Flushed,
    ) -> Result<(), PagingError> {
        loop {
            let mut runs = arrayvec::ArrayVec::<FrameRange<GuestPhysical>, BATCH>::new();
            self.kernel.visit(&Tables, |range, leaf| {
                if leaf.rights.execute {
                    match runs.last_mut() {
                        Some(last) if last.end == range.start => last.end = range.end,
                        // What does not fit is found in the next round.
                        _ => drop(runs.try_push(range)),
                    }
                }
            });
            if runs.is_empty() {
                return Ok(());
            }
            for range in &runs {
                self.kernel
                    .protect(&mut Tables, *range, NptRights::READ_WRITE)?
                    .release(&mut Tables, flush());
            }
        }
    }

    /// Lets all of `ram`, which is data, be executed where data may be: in the user view, or in
    /// the only one.
    ///
    /// # Errors
    /// Out of table pages.
    pub fn open_for_execution(
        &mut self,
        ram: &[FrameRange<GuestPhysical>],
        mut flush: impl FnMut() -> Flushed,
    ) -> Result<(), PagingError> {
        let (table, view) = match &mut self.user {
            Some(user) => (user, View::User),
            None => (&mut self.kernel, View::Single),
        };
        let rights = npt(second_stage(PageState::Data, view));
        for range in ram {
            table.protect(&mut Tables, *range, rights)?.release(&mut Tables, flush());
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
        mut flush: impl FnMut() -> Flushed,
    ) -> Result<(), PagingError> {
        self.protect(range, |view| npt(second_stage(state, view)))?.release(&mut Tables, flush());
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
        mut flush: impl FnMut() -> Flushed,
    ) -> Result<(), PagingError> {
        self.protect(range, |_| NptRights::READ)?.release(&mut Tables, flush());
        Ok(())
    }

    /// Changes rights in all views; one flush serves them together.
    fn protect(
        &mut self,
        range: FrameRange<GuestPhysical>,
        rights: impl Fn(View) -> NptRights,
    ) -> Result<Removed<Npt>, PagingError> {
        let Some(user) = &mut self.user else {
            return self.kernel.protect(&mut Tables, range, rights(View::Single));
        };
        let mut removed = self.kernel.protect(&mut Tables, range, rights(View::Kernel))?;
        let other = user.protect(&mut Tables, range, rights(View::User))?;
        // Changing rights unlinks no table, so there is always room.
        drop(removed.join(other));
        Ok(removed)
    }

    /// Makes large leaves again where whole blocks have the same rights.
    fn collapse(
        &mut self,
        range: FrameRange<GuestPhysical>,
        mut flush: impl FnMut() -> Flushed,
    ) -> Result<(), PagingError> {
        for table in [Some(&mut self.kernel), self.user.as_mut()].into_iter().flatten() {
            let removed = table.collapse(&mut Tables, range, Level::Page1G)?;
            if !removed.is_empty() {
                removed.release(&mut Tables, flush());
            }
        }
        Ok(())
    }
}

fn npt(rights: Rights) -> NptRights {
    NptRights {
        read: rights.contains(Rights::READ),
        write: rights.contains(Rights::WRITE),
        execute: rights.contains(Rights::EXECUTE),
    }
}

/// A table that maps every frame below `limit` but `own` to itself.
fn identity(limit: Gfn, own: &[FrameRange<GuestPhysical>]) -> Result<PageTable<Npt>, PagingError> {
    let mut table = PageTable::<Npt>::new(&mut Tables)?;
    let mut start = Gfn::new(0);
    let ends = own.iter().copied().chain([FrameRange::with_count(limit, 0)]);
    for hole in ends {
        let range = FrameRange::new(start, hole.start);
        if !range.is_empty() {
            table.map(
                &mut Tables,
                range,
                start.identity(),
                NptRights::READ_WRITE,
                Level::Page1G,
            )?;
        }
        start = hole.end;
    }
    let registers = FrameRange::with_count(Gpa::new(apic::BASE).frame(), 1);
    // No CPU has used the table yet.
    table
        .protect(&mut Tables, registers, NptRights::READ)?
        .release(&mut Tables, Flushed::acknowledged());
    Ok(table)
}
