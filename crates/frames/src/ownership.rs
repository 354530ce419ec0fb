//! Who owns each frame of the hypervisor's pool, and every change of that.
//!
//! What always holds, at every instant and on every CPU ([`Rules`] names each condition):
//! - A frame has one owner, is in quarantine, or is free; its word says which.
//! - The direct map maps the hypervisor's frames and zeroed free ones, and none of anybody else's.
//!   Owner and leaf change in one call, under the one lock that `&mut self` stands for.
//! - A frame changes hands through quarantine only: freed, forgotten by every CPU, zeroed, free.
//! - A block that nobody has used yet (*fresh*) is zeroed as a whole when the first of its frames is
//!   given out, or when it is set aside: most of a pool never is, and costs nothing.
//! - Blocks keep whole leaves. See [`DirectMap`] for what is asked of it.
//!
//! Nothing is searched: each operation takes the same time whatever the size of the pool, except
//! those on whole blocks.

mod placement;
#[cfg(test)]
pub(crate) mod tests;

use crate::Epochs;
use crate::block::{Block, Blocks, Kind};
use crate::direct_map::{DirectMap, Leaves, NoTables};
use crate::quarantine::Quarantine;
use crate::rules::{Enforced, Rules};
use crate::word::{FrameState, MOST_WINDOWS, NUMBERS, Owner, Word};
use addr::{FrameRange, Hfn, HostPhysical};
use core::marker::PhantomData;

/// log2 of the frames in a block: 2 MiB.
const BLOCK_SHIFT: u32 = 9;

/// Why a change of owner was refused. Nothing was changed, unless the text says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnershipError {
    /// The pool is not made of whole blocks, is too large, or its storage is too small.
    #[error("the pool needs whole 2 MiB blocks below 64 GiB, and a word per frame")]
    BadPool,
    /// The owner's number has more than 24 bits.
    #[error("the number of {0:?} has more than 24 bits")]
    BadOwner(Owner),
    /// No frame, or block, is free or in quarantine.
    #[error("no memory: free some, or enlarge the hypervisor's pool")]
    OutOfMemory,
    /// There will be frames when every CPU has flushed. A block may have been set aside.
    #[error("frames are free when every CPU has flushed for request {0}: flush and try again")]
    Wait(u64),
    /// See [`NoTables`].
    #[error(transparent)]
    NoTables(#[from] NoTables),
    /// The frame is none of the pool's.
    #[error("frame {0:?} is not one of the pool's")]
    Foreign(Hfn),
    /// The frame has another owner, or none.
    #[error("frame {0:?} does not belong to the owner who frees it")]
    NotOwner(Hfn),
    /// A window is open on the frame.
    #[error("a window is open on frame {0:?}: close it first")]
    WindowOpen(Hfn),
    /// No window opens on frames of this kind, or too many are open, or none that could be closed.
    #[error("frame {0:?} can have no (further) window, or has none")]
    NoWindow(Hfn),
}

use OwnershipError as Error;

/// The frames of a pool. `W` and `B` are storage for words and blocks, such as `&mut [Word]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ownership<W, B, R = Enforced> {
    start: Hfn,
    count: u32,
    block_shift: u32,
    words: W,
    blocks: Blocks<B>,
    quarantine: Quarantine,
    /// Free frames.
    free: u32,
    leaves: Leaves,
    /// Request that all CPUs were last seen to have served.
    acknowledged: u64,
    rules: PhantomData<R>,
}

impl<W, B> Ownership<W, B>
where
    W: AsRef<[Word]> + AsMut<[Word]>,
    B: AsRef<[Block]> + AsMut<[Block]>,
{
    /// Words that a pool of `frames` frames needs.
    pub const fn words(frames: u64) -> u64 {
        frames
    }

    /// Blocks that a pool of `frames` frames needs.
    pub const fn blocks(frames: u64) -> u64 {
        frames >> BLOCK_SHIFT
    }

    /// The frames of `range`, whole 2 MiB blocks, all of them in the direct map by large leaves.
    /// The first `used` belong to the hypervisor; the others are free, whatever their content.
    /// `words` are all [`Word::default`].
    ///
    /// # Errors
    /// `BadPool`.
    pub fn new(
        range: FrameRange<HostPhysical>,
        used: u64,
        words: W,
        blocks: B,
        map: &mut impl DirectMap,
    ) -> Result<Self, Error> {
        Self::with_blocks(range, used, words, blocks, BLOCK_SHIFT, map)
    }
}

impl<W, B, R: Rules> Ownership<W, B, R>
where
    W: AsRef<[Word]> + AsMut<[Word]>,
    B: AsRef<[Block]> + AsMut<[Block]>,
{
    /// As `new`, with blocks of another size.
    fn with_blocks(
        range: FrameRange<HostPhysical>,
        used: u64,
        words: W,
        blocks: B,
        block_shift: u32,
        map: &mut impl DirectMap,
    ) -> Result<Self, Error> {
        let size = 1 << block_shift;
        let count = u32::try_from(range.count()).ok().filter(|count| *count < NUMBERS);
        let count = count.ok_or(Error::BadPool)?;
        let fits = range.start.is_aligned(size)
            && range.end.is_aligned(size)
            && words.as_ref().len() >= count as usize
            && blocks.as_ref().len() >= (count >> block_shift) as usize
            && used <= range.count();
        let used = u32::try_from(used).ok().filter(|_| fits).ok_or(Error::BadPool)?;
        let mut pool = Self {
            start: range.start,
            count,
            block_shift,
            words,
            blocks: Blocks::new(blocks),
            quarantine: Quarantine::default(),
            free: count - used,
            leaves: Leaves { large: u64::from(count >> block_shift), ..Leaves::default() },
            acknowledged: 0,
            rules: PhantomData,
        };
        for block in (0..count >> block_shift).rev() {
            let frames = pool.frames_of(block);
            let hv = used.clamp(frames.start, frames.end) - frames.start;
            let hv = u16::try_from(hv).map_err(|_| Error::BadPool)?;
            let free = (1 << block_shift) - hv;
            *pool.blocks.get_mut(block) = Block { free, hv, fresh: true, ..Block::EMPTY };
            for frame in frames.take(usize::from(hv)) {
                *pool.word_mut(frame) = Word::owned(Owner::Hv);
            }
            if hv > 0 {
                pool.make_ready(block, map);
            }
            pool.link(block);
        }
        Ok(pool)
    }

    /// The frames.
    pub fn range(&self) -> FrameRange<HostPhysical> {
        FrameRange::with_count(self.start, u64::from(self.count))
    }

    /// Free frames.
    pub const fn free_frames(&self) -> u32 {
        self.free
    }

    /// Frames in quarantine.
    pub const fn quarantined_frames(&self) -> u32 {
        self.quarantine.count()
    }

    /// Leaves of the direct map.
    pub const fn leaves(&self) -> Leaves {
        self.leaves
    }

    /// The state of a frame; `None` if it is none of the pool's.
    pub fn state(&self, frame: Hfn) -> Option<FrameState> {
        Some(self.word(self.number(frame).ok()?).state())
    }

    /// Whether the direct map has the block of a frame of the pool's as a whole.
    pub(crate) fn is_at_home(&self, frame: Hfn) -> bool {
        self.number(frame).is_ok_and(|number| !self.blocks.get(number >> self.block_shift).aside)
    }

    /// Gives a frame, zeroed, to `owner`: for the hypervisor from a block at home as long as there
    /// is one, for others from a block set aside.
    ///
    /// # Errors
    /// `Wait` when frames are on their way: flush all CPUs, [`Ownership::reclaim`], try again.
    /// `OutOfMemory`, `NoTables`, `BadOwner`.
    pub fn allocate<const CPUS: usize>(
        &mut self,
        owner: Owner,
        epochs: &Epochs<CPUS>,
        map: &mut impl DirectMap,
    ) -> Result<Hfn, Error> {
        if !owner.is_expressible() {
            return Err(Error::BadOwner(owner));
        }
        let block = match owner {
            Owner::Hv => self.block_for_hv(map)?,
            _ => self.block_aside(epochs, map)?,
        };
        self.make_ready(block, map);
        let frame = self.blocks.get(block).first.ok_or(Error::OutOfMemory)?;
        let kind = self.kind(block);
        let next = self.word(frame).next();
        *self.word_mut(frame) = Word::owned(owner);
        self.free -= 1;
        let entry = self.blocks.get_mut(block);
        entry.first = next;
        entry.free -= 1;
        entry.hv += u16::from(owner == Owner::Hv);
        self.relist(block, kind);
        Ok(self.frame(frame))
    }

    /// Gives a whole block, zeroed, to `owner`, who is not the hypervisor.
    ///
    /// # Errors
    /// As for [`Ownership::prepare_blocks`], and `BadOwner`.
    pub fn allocate_block<const CPUS: usize>(
        &mut self,
        owner: Owner,
        epochs: &Epochs<CPUS>,
        map: &mut impl DirectMap,
    ) -> Result<FrameRange<HostPhysical>, Error> {
        if !owner.is_expressible() || owner == Owner::Hv {
            return Err(Error::BadOwner(owner));
        }
        self.prepare_blocks(1, epochs, map)?;
        let block = self.blocks.first(Kind::Spare).ok_or(Error::OutOfMemory)?;
        let kind = self.kind(block);
        for frame in self.frames_of(block) {
            *self.word_mut(frame) = Word::owned(owner);
        }
        self.free -= 1 << self.block_shift;
        let entry = self.blocks.get_mut(block);
        (entry.first, entry.free) = (None, 0);
        self.relist(block, kind);
        Ok(self.range_of(block))
    }

    /// Takes a frame, which `owner` has unmapped from its tables, into quarantine. Many may be
    /// freed before the flush that they wait for is requested.
    ///
    /// # Errors
    /// `Foreign`, `NotOwner`, `WindowOpen`.
    pub fn free<const CPUS: usize>(
        &mut self,
        frame: Hfn,
        owner: Owner,
        epochs: &Epochs<CPUS>,
        map: &mut impl DirectMap,
    ) -> Result<(), Error> {
        let number = self.number(frame)?;
        let word = self.word(number);
        match word.state() {
            FrameState::Owned(owned) if owned == owner || !R::OWNER_FREES => {}
            _ => return Err(Error::NotOwner(frame)),
        }
        if word.windows() > 0 && R::WINDOW_PINS {
            return Err(Error::WindowOpen(frame));
        }
        let block = number >> self.block_shift;
        let kind = self.kind(block);
        if word.state() == FrameState::Owned(Owner::Hv) {
            let entry = self.blocks.get_mut(block);
            entry.hv -= 1;
            if entry.aside && R::STRAY_UNMAPS {
                map.unmap(FrameRange::with_count(frame, 1));
                self.leaves.small -= 1;
            }
        }
        let request = if R::LATER_FLUSH { epochs.covering() } else { epochs.covering() - 1 };
        *self.word_mut(number) = Word::quarantined(self.quarantine.push(number, request));
        self.relist(block, kind);
        Ok(())
    }

    /// Takes at most `most` frames, which every CPU has forgotten, out of quarantine, and has
    /// `zero` zero each. Answers how many there were.
    pub fn reclaim<const CPUS: usize>(
        &mut self,
        epochs: &Epochs<CPUS>,
        most: u32,
        mut zero: impl FnMut(Hfn),
    ) -> u32 {
        self.acknowledged = self.acknowledged.max(epochs.acknowledged());
        let acknowledged = if R::QUARANTINE { self.acknowledged } else { u64::MAX };
        for reclaimed in 0..most {
            let Some(frame) = self.quarantine.ready(acknowledged) else { return reclaimed };
            self.quarantine.pop(self.word(frame).next());
            if R::ZERO {
                zero(self.frame(frame));
            }
            let block = frame >> self.block_shift;
            let kind = self.kind(block);
            self.add_free(frame, block);
            self.relist(block, kind);
        }
        most
    }

    /// The request that the oldest frames in quarantine wait for.
    pub fn waits_for(&self) -> Option<u64> {
        self.quarantine.oldest()
    }

    /// Notes that a window opens on a frame.
    ///
    /// # Errors
    /// `Foreign`; `NoWindow` unless the frame is a VM's or a task's and has fewer than 31.
    pub fn open_window(&mut self, frame: Hfn) -> Result<(), Error> {
        let number = self.number(frame)?;
        let word = self.word(number);
        let allowed = match word.state() {
            FrameState::Owned(Owner::Vm(_) | Owner::Task(_)) => true,
            _ => !R::WINDOW_KINDS,
        };
        if !allowed || word.windows() == MOST_WINDOWS {
            return Err(Error::NoWindow(frame));
        }
        *self.word_mut(number) = word.with_windows(word.windows() + 1);
        Ok(())
    }

    /// Notes that a window on a frame was closed, and forgotten by its CPU.
    ///
    /// # Errors
    /// `Foreign`, `NoWindow`.
    pub fn close_window(&mut self, frame: Hfn) -> Result<(), Error> {
        let number = self.number(frame)?;
        let word = self.word(number);
        let windows = word.windows().checked_sub(1).ok_or(Error::NoWindow(frame))?;
        *self.word_mut(number) = word.with_windows(windows);
        Ok(())
    }

    /// Zeroes the free frames of a fresh block, whose first frames are the hypervisor's, if any, and
    /// makes their list.
    fn make_ready(&mut self, block: u32, map: &mut impl DirectMap) {
        if !core::mem::take(&mut self.blocks.get_mut(block).fresh) {
            return;
        }
        let frames = self.frames_of(block);
        let free = frames.start + u32::from(self.blocks.get(block).hv)..frames.end;
        if R::ZERO_FRESH {
            map.zero(FrameRange::new(self.frame(free.start), self.frame(free.end)));
        }
        let mut next = None;
        for frame in free.rev() {
            *self.word_mut(frame) = Word::free(next);
            next = Some(frame);
        }
        self.blocks.get_mut(block).first = next;
    }

    /// Adds a frame to the free ones of its block, which is in no list.
    fn add_free(&mut self, frame: u32, block: u32) {
        let entry = self.blocks.get_mut(block);
        let next = entry.first.replace(frame);
        entry.free += 1;
        self.free += 1;
        *self.word_mut(frame) = Word::free(next);
    }

    /// Puts a block, which was of kind `old`, into the list that it belongs in now.
    fn relist(&mut self, block: u32, old: Kind) {
        if self.kind(block) != old {
            self.blocks.unlink(block, old);
            self.link(block);
        }
    }

    /// Puts a block that is in no list into one.
    fn link(&mut self, block: u32) {
        let kind = self.kind(block);
        let is_forgotten = self.blocks.get(block).forgotten <= self.acknowledged;
        self.blocks.link(block, kind, is_forgotten);
    }

    fn kind(&self, block: u32) -> Kind {
        self.blocks.get(block).kind(1 << self.block_shift)
    }

    fn word(&self, number: u32) -> Word {
        self.words.as_ref()[number as usize]
    }

    fn word_mut(&mut self, number: u32) -> &mut Word {
        &mut self.words.as_mut()[number as usize]
    }

    fn frame(&self, number: u32) -> Hfn {
        self.start.plus(u64::from(number))
    }

    fn frames_of(&self, block: u32) -> core::ops::Range<u32> {
        block << self.block_shift..(block + 1) << self.block_shift
    }

    fn range_of(&self, block: u32) -> FrameRange<HostPhysical> {
        FrameRange::with_count(self.frame(block << self.block_shift), 1 << self.block_shift)
    }

    fn number(&self, frame: Hfn) -> Result<u32, Error> {
        let number = frame.raw().checked_sub(self.start.raw());
        let number = number.and_then(|number| u32::try_from(number).ok());
        number.filter(|number| *number < self.count).ok_or(Error::Foreign(frame))
    }
}
