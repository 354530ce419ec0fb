//! Which block a frame comes from, and which blocks the direct map has.
//!
//! The hypervisor's frames come from blocks at home, all others from blocks set aside. Only when
//! one kind of memory has run out does a block hold both, and is mapped by small leaves, until no
//! foreign frame is left in it.

use super::{Error, Ownership};
use crate::Epochs;
use crate::block::{Block, Kind};
use crate::direct_map::DirectMap;
use crate::rules::Rules;
use crate::word::{FrameState, Owner, Word};
use addr::{FrameRange, HostPhysical};

impl<W, B, R: Rules> Ownership<W, B, R>
where
    W: AsRef<[Word]> + AsMut<[Word]>,
    B: AsRef<[Block]> + AsMut<[Block]>,
{
    /// Sees to it that the next `count` calls of [`Ownership::allocate_block`] succeed.
    ///
    /// # Errors
    /// `Wait` when all CPUs must flush first; `OutOfMemory` if there are not as many whole blocks;
    /// `NoTables`. Blocks may have been set aside.
    pub fn prepare_blocks<const CPUS: usize>(
        &mut self,
        count: u32,
        epochs: &Epochs<CPUS>,
        map: &mut impl DirectMap,
    ) -> Result<(), Error> {
        self.acknowledged = self.acknowledged.max(epochs.acknowledged());
        if count > self.blocks.count(Kind::Spare) + self.blocks.count(Kind::Whole) {
            return Err(self.shortage());
        }
        while let Some(block) = self.blocks.first(Kind::Whole)
            && self.blocks.count(Kind::Spare) < count
        {
            self.set_aside(block, epochs, map)?;
        }
        let first = self.blocks.iter(Kind::Spare).take(count as usize);
        let forgotten = first.map(|block| self.blocks.get(block).forgotten).max();
        match forgotten.filter(|request| !self.is_forgotten(*request)) {
            Some(request) => Err(Error::Wait(request)),
            None => Ok(()),
        }
    }

    /// Takes blocks without foreign frames back into the direct map, all but `keep` spare ones.
    /// Answers how many.
    ///
    /// # Errors
    /// `NoTables`; what was taken back before stays.
    pub fn bring_back(&mut self, keep: u32, map: &mut impl DirectMap) -> Result<u32, Error> {
        let mut count = 0;
        while let Some(block) = self.returnable(keep) {
            map.restore(self.range_of(block))?;
            let kind = self.kind(block);
            let entry = self.blocks.get_mut(block);
            entry.aside = false;
            let strays = u64::from(entry.hv);
            self.leaves.large += 1;
            self.leaves.small -= strays;
            self.leaves.collapses += u64::from(strays > 0);
            self.relist(block, kind);
            count += 1;
        }
        Ok(count)
    }

    /// A block with a free frame for the hypervisor.
    pub(super) fn block_for_hv(&mut self, map: &mut impl DirectMap) -> Result<u32, Error> {
        if let Some(block) = self.first_of([Kind::Home, Kind::Whole]) {
            return Ok(block);
        }
        let aside = self.first_of([Kind::Strays, Kind::Aside, Kind::Spare]);
        let block = aside.ok_or(self.shortage())?;
        let frame = self.blocks.get(block).first.ok_or(self.shortage())?;
        map.map(self.frame(frame))?;
        self.leaves.small += 1;
        Ok(block)
    }

    /// A block set aside, with a free frame, that every CPU has forgotten.
    pub(super) fn block_aside<const CPUS: usize>(
        &mut self,
        epochs: &Epochs<CPUS>,
        map: &mut impl DirectMap,
    ) -> Result<u32, Error> {
        // What all CPUs were seen to have served suffices nearly always.
        if let Some(block) = self.blocks.first(Kind::Aside)
            && self.is_forgotten(self.blocks.get(block).forgotten)
        {
            return Ok(block);
        }
        self.acknowledged = self.acknowledged.max(epochs.acknowledged());
        let mut wait: Option<u64> = None;
        for kind in [Kind::Aside, Kind::Strays, Kind::Spare] {
            // Blocks that are not forgotten stand behind those that are.
            let Some(block) = self.blocks.first(kind) else { continue };
            let forgotten = self.blocks.get(block).forgotten;
            if self.is_forgotten(forgotten) {
                return Ok(block);
            }
            wait = Some(wait.map_or(forgotten, |wait| wait.min(forgotten)));
        }
        if let Some(request) = wait {
            return Err(Error::Wait(request));
        }
        let block = self.first_of([Kind::Whole, Kind::Home]).ok_or(self.shortage())?;
        Err(Error::Wait(self.set_aside(block, epochs, map)?))
    }

    fn is_forgotten(&self, request: u64) -> bool {
        request <= self.acknowledged || !R::LEAVE_QUARANTINE
    }

    /// Takes a block at home out of the direct map, and answers the request that makes it usable.
    fn set_aside<const CPUS: usize>(
        &mut self,
        block: u32,
        epochs: &Epochs<CPUS>,
        map: &mut impl DirectMap,
    ) -> Result<u64, Error> {
        let strays = u64::from(self.blocks.get(block).hv);
        if strays == 0 {
            map.split(self.range_of(block))?;
            self.make_ready(block, map);
            if R::SET_ASIDE_UNMAPS {
                map.unmap(self.range_of(block));
            }
        } else {
            for run in self.runs_to_unmap(block) {
                map.split(run)?;
            }
            for run in self.runs_to_unmap(block) {
                map.unmap(run);
            }
        }
        let kind = self.kind(block);
        let forgotten = epochs.covering();
        let entry = self.blocks.get_mut(block);
        (entry.aside, entry.forgotten) = (true, forgotten);
        self.leaves.large -= 1;
        self.leaves.small += strays;
        self.leaves.splits += u64::from(strays > 0);
        self.relist(block, kind);
        Ok(forgotten)
    }

    /// What to say when nothing is free.
    fn shortage(&self) -> Error {
        self.quarantine.oldest().map_or(Error::OutOfMemory, Error::Wait)
    }

    /// A block to take back into the direct map.
    fn returnable(&self, keep: u32) -> Option<u32> {
        let spare =
            self.blocks.first(Kind::Spare).filter(|_| self.blocks.count(Kind::Spare) > keep);
        let early = self.blocks.first(Kind::Aside).filter(|_| !R::WHOLE_RETURNS);
        self.first_of([Kind::Lost, Kind::Strays]).or(spare).or(early)
    }

    /// Runs of frames of a block that are not the hypervisor's.
    fn runs_to_unmap(
        &self,
        block: u32,
    ) -> impl Iterator<Item = FrameRange<HostPhysical>> + use<'_, W, B, R> {
        let is_hv = |number: &u32| self.word(*number).state() == FrameState::Owned(Owner::Hv);
        let mut rest = self.frames_of(block);
        core::iter::from_fn(move || {
            let start = rest.find(|number| !is_hv(number))?;
            let end = rest.find(is_hv).unwrap_or(rest.end);
            Some(FrameRange::new(self.frame(start), self.frame(end)))
        })
    }

    fn first_of<const N: usize>(&self, kinds: [Kind; N]) -> Option<u32> {
        kinds.into_iter().find_map(|kind| self.blocks.first(kind))
    }
}
