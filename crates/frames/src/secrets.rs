//! Secret memory: who may have how much of it, and under which handle. Its frames are whole 2 MiB
//! blocks outside the direct map, on which no window opens ([`Owner::Secret`]).
//!
//! A handle names its secret as long as the secret lives and nothing after that: its slot counts
//! its uses. (After 65536 uses of one slot a number comes again.)

use crate::block::Block;
use crate::rules::Rules;
use crate::word::{Owner, Word};
use crate::{DirectMap, Epochs, Ownership, OwnershipError};
use addr::{FRAMES_PER_2M, FrameRange, Hfn, HostPhysical, PAGE_SIZE};

/// Most blocks of one secret: 64 MiB.
pub const MOST_BLOCKS: usize = 32;
/// Most slots of a table.
const MOST_SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 8;
const BLOCK_BYTES: u64 = FRAMES_PER_2M * PAGE_SIZE;

/// Why there is no secret. Nothing was changed, but blocks may have been set aside for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Zero bytes, or more than [`MOST_BLOCKS`] blocks.
    #[error("{0} bytes: a secret has between 1 byte and 64 MiB")]
    BadSize(u64),
    /// The task would have more blocks than it may.
    #[error("the task may have {limit} blocks of secret memory, and would have {wanted}")]
    Quota {
        /// Blocks that it may have.
        limit: u32,
        /// Blocks that it would have.
        wanted: u32,
    },
    /// All slots are in use.
    #[error("the table of secrets is full")]
    NoSlot,
    /// The handle names no secret of this task.
    #[error("the handle names no secret of this task")]
    BadHandle,
    /// No frames, or not yet: see [`OwnershipError::Wait`].
    #[error(transparent)]
    Frames(#[from] OwnershipError),
}

/// Names a secret, below 2^24: slot and use of the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretHandle(u32);

impl SecretHandle {
    /// The handle behind a number that a task gives.
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }
    /// The number to give to a task.
    pub const fn raw(self) -> u32 {
        self.0
    }
    /// The owner of the secret's frames.
    pub const fn owner(self) -> Owner {
        Owner::Secret(self.0)
    }
}

/// Room for one secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretSlot {
    task: Option<u32>,
    uses: u16,
    blocks: [Hfn; MOST_BLOCKS],
    count: u32,
}

impl SecretSlot {
    /// Unused.
    pub const EMPTY: Self =
        Self { task: None, uses: 0, blocks: [Hfn::new(0); MOST_BLOCKS], count: 0 };

    fn used(&self) -> usize {
        self.count as usize
    }
}

/// All secrets. `S` is storage for the slots, of which 256 are used at most.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Secrets<S> {
    slots: S,
    /// Blocks that one task may have.
    quota: u32,
}

impl<S: AsRef<[SecretSlot]> + AsMut<[SecretSlot]>> Secrets<S> {
    /// No secret yet. `quota`: blocks of 2 MiB that each task may have.
    pub fn new(mut slots: S, quota: u32) -> Self {
        slots.as_mut().fill(SecretSlot::EMPTY);
        Self { slots, quota }
    }

    /// Blocks that a task has.
    pub fn blocks_of(&self, task: u32) -> u32 {
        let slots = self.slots.as_ref().iter().filter(|slot| slot.task == Some(task));
        slots.map(|slot| slot.count).sum()
    }

    /// Takes whole blocks for `bytes` bytes, zeroed, and gives them to a new secret of `task`.
    ///
    /// # Errors
    /// `Frames(Wait(_))`: flush all CPUs, reclaim, try again. See [`SecretError`] for the others.
    pub fn create<W, B, R: Rules, const CPUS: usize>(
        &mut self,
        task: u32,
        bytes: u64,
        frames: &mut Ownership<W, B, R>,
        epochs: &Epochs<CPUS>,
        map: &mut impl DirectMap,
    ) -> Result<SecretHandle, SecretError>
    where
        W: AsRef<[Word]> + AsMut<[Word]>,
        B: AsRef<[Block]> + AsMut<[Block]>,
    {
        let count = u32::try_from(bytes.div_ceil(BLOCK_BYTES)).ok();
        let count = count.filter(|count| (1..=MOST_BLOCKS).contains(&(*count as usize)));
        let count = count.ok_or(SecretError::BadSize(bytes))?;
        let wanted = self.blocks_of(task) + count;
        if wanted > self.quota {
            return Err(SecretError::Quota { limit: self.quota, wanted });
        }
        let mut slots = self.slots.as_mut().iter_mut().take(MOST_SLOTS).zip(0_u32..);
        let (slot, index) =
            slots.find(|(slot, _)| slot.task.is_none()).ok_or(SecretError::NoSlot)?;
        frames.prepare_blocks(count, epochs, map)?;
        let handle = SecretHandle(index | u32::from(slot.uses) << SLOT_BITS);
        for place in slot.blocks.iter_mut().take(count as usize) {
            *place = frames.allocate_block(handle.owner(), epochs, map)?.start;
        }
        (slot.task, slot.count) = (Some(task), count);
        Ok(handle)
    }

    /// The blocks of a secret, in order, for its task's page table.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn blocks(
        &self,
        task: u32,
        handle: SecretHandle,
    ) -> Result<impl Iterator<Item = FrameRange<HostPhysical>>, SecretError> {
        let slot = &self.slots.as_ref()[self.find(task, handle)?];
        let blocks = slot.blocks.iter().take(slot.used());
        Ok(blocks.map(|block| FrameRange::with_count(*block, FRAMES_PER_2M)))
    }

    /// The task whose secret has the handle of this number.
    pub fn task_of(&self, raw: u32) -> Option<u32> {
        let slot = self.slots.as_ref().get(raw as usize % MOST_SLOTS)?;
        slot.task.filter(|_| u32::from(slot.uses) == raw >> SLOT_BITS)
    }

    /// Ends a secret, which its task's page table maps no more. Its frames go into quarantine and
    /// are zeroed when every CPU has forgotten them.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn destroy<W, B, R: Rules, const CPUS: usize>(
        &mut self,
        task: u32,
        handle: SecretHandle,
        frames: &mut Ownership<W, B, R>,
        epochs: &Epochs<CPUS>,
        map: &mut impl DirectMap,
    ) -> Result<(), SecretError>
    where
        W: AsRef<[Word]> + AsMut<[Word]>,
        B: AsRef<[Block]> + AsMut<[Block]>,
    {
        let index = self.find(task, handle)?;
        let slot = &mut self.slots.as_mut()[index];
        for block in slot.blocks.iter().take(slot.used()) {
            for frame in FrameRange::with_count(*block, FRAMES_PER_2M).iter() {
                frames.free(frame, handle.owner(), epochs, map)?;
            }
        }
        *slot = SecretSlot { uses: slot.uses.wrapping_add(1), ..SecretSlot::EMPTY };
        Ok(())
    }

    /// The slot of a handle.
    fn find(&self, task: u32, handle: SecretHandle) -> Result<usize, SecretError> {
        let is_its = self.task_of(handle.0) == Some(task);
        if is_its { Ok(handle.0 as usize % MOST_SLOTS) } else { Err(SecretError::BadHandle) }
    }
}

#[cfg(test)]
mod tests;
