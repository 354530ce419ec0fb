//! The pool: the region that the hypervisor took from the machine at boot, and from which every
//! frame comes that it, or a task of it, ever needs.
//!
//! First, while it boots on one CPU, frames are taken from the start of the region, one after
//! another, and never given back. Then, before the other CPUs start, [`begin_ownership`]: from there
//! on single frames have owners ([`frames::Ownership`]), and change them under the one lock of this
//! module, together with the direct map. What is not the hypervisor's is not in the direct map.

mod own;
#[cfg(feature = "unowned")]
mod unowned;

pub use own::{Block, Tables};

use super::direct::Direct;
use super::{DIRECT_MAP, flush, window};
use addr::{FRAMES_PER_2M, FrameRange, Hfn, HostPhysical, PAGE_SIZE};
use arrayvec::ArrayVec;
use frames::{
    Block as FrameBlock, FrameState, Leaves, MOST_BLOCKS, Owner, Ownership, OwnershipError,
    SecretError, SecretHandle, SecretSlot, Secrets, Word,
};
use paging::{PageTable, PagingError, X86_64};
use spin::Once;
use spin::mutex::SpinMutex;

/// Secrets that there can be at a time.
const SECRETS: u64 = 64;
/// Blocks of 2 MiB that a task may have in secrets.
pub const SECRET_QUOTA: u32 = 4;
/// Frames that are zeroed in one go, with the lock held.
const BATCH: u32 = 64;

static REGION: Once<FrameRange<HostPhysical>> = Once::new();
static POOL: SpinMutex<Pool> = SpinMutex::new(Pool { used: 0, direct: None, owners: None });

type Frames = Ownership<&'static mut [Word], &'static mut [FrameBlock]>;
type SecretTable = Secrets<&'static mut [SecretSlot]>;

struct Pool {
    /// Frames taken from the start of the region, before there are owners.
    used: u64,
    direct: Option<Direct>,
    owners: Option<Owners>,
}

struct Owners {
    frames: Frames,
    secrets: SecretTable,
    /// Frames that the hypervisor has.
    hv: u64,
    /// Frames that all others may have, so that it never runs short of memory because of them.
    most: u64,
}

/// Starts the pool over `region`, and maps it. The boot tables have it at [`DIRECT_MAP`] too.
///
/// # Errors
/// It is too small.
pub fn start(region: FrameRange<HostPhysical>) -> Result<(), PagingError> {
    REGION.call_once(|| region);
    let direct = Direct::new(region)?;
    POOL.lock().direct = Some(direct);
    Ok(())
}

/// Gives every frame an owner: those taken so far belong to the hypervisor, the others to nobody.
/// All but the hypervisor may have `most` of them together. `None` if the pool is too small.
pub fn begin_ownership(most: u64) -> Option<()> {
    let region = region();
    let words = leak_filled(Frames::words(region.count()), Word::default())?;
    let blocks = leak_filled(Frames::blocks(region.count()), FrameBlock::EMPTY)?;
    let secrets = Secrets::new(leak_filled(SECRETS, SecretSlot::EMPTY)?, SECRET_QUOTA);
    let mut pool = POOL.lock();
    let Pool { used: hv, direct: Some(direct), owners } = &mut *pool else { return None };
    let frames = Ownership::new(region, *hv, words, blocks, direct).ok()?;
    let mut new = Owners { frames, secrets, hv: *hv, most };
    new.keep_up(direct);
    *owners = Some(new);
    Some(())
}

/// All frames of the pool.
pub fn region() -> FrameRange<HostPhysical> {
    REGION.get().copied().unwrap_or(FrameRange::with_count(Hfn::new(0), 0))
}

/// Frames that change hands under one lock.
pub type Frames64 = ArrayVec<Hfn, { BATCH as usize }>;

/// Gives `count` frames (at most 64), zeroed, to `owner`, all or none; waits until all CPUs have
/// flushed if it must. The caller is CPU `cpu` and holds no lock.
///
/// # Errors
/// `OutOfMemory`, `NoTables`, `BadOwner`.
pub fn take(cpu: usize, owner: Owner, count: usize) -> Result<Frames64, OwnershipError> {
    let mut taken = Frames64::new();
    #[cfg(feature = "unowned")]
    unowned::take(owner, count, &mut taken);
    loop {
        let outcome = with_owners(|owners, direct| {
            while taken.len() < count {
                let frame = owners.take(direct, owner)?;
                taken.try_push(frame).map_err(|_| OwnershipError::OutOfMemory)?;
            }
            Ok(())
        });
        match outcome {
            Ok(()) => return Ok(taken),
            Err(OwnershipError::Wait(request)) => flush::wait(cpu, request),
            Err(error) => {
                // They have just become the owner's.
                let _ = give_back(&taken, owner);
                return Err(error);
            }
        }
    }
}

/// Takes back frames that `owner` has unmapped from its tables. They are zeroed before anybody else
/// gets them, which is when every CPU has flushed.
///
/// # Errors
/// `Foreign`, `NotOwner`, `WindowOpen`, for the first frame of which that is true; those behind it
/// stay the owner's.
pub fn give_back(frames: &[Hfn], owner: Owner) -> Result<(), OwnershipError> {
    #[cfg(feature = "unowned")]
    let frames = unowned::keep(frames, owner);
    with_owners(|owners, direct| {
        frames.iter().try_for_each(|frame| owners.give_back(direct, *frame, owner))
    })
}

/// Has all CPUs flush, zeroes what they have forgotten, and takes blocks that are whole again back
/// into the direct map. The caller is CPU `cpu` and holds no lock.
pub fn tidy(cpu: usize) {
    flush::wait(cpu, flush::epochs().covering());
    let reclaim = || with_owners::<_, OwnershipError>(|owners, direct| Ok(owners.reclaim(direct)));
    while reclaim().is_ok_and(|count| count == BATCH) {}
    // What cannot be taken back now is taken back later.
    let _ = with_owners(|owners, direct| owners.frames.bring_back(0, direct));
}

/// Zeroes frames that are not in the direct map, and mapped nowhere now.
pub fn clear_unmapped(frames: &[Hfn]) {
    // The window that zeroes is used with this lock held.
    let _pool = POOL.lock();
    for frame in frames {
        window::clear_vacant(*frame);
    }
}

/// Whether frames all belong to `owner`.
pub fn are_owned(frames: &[Hfn], owner: Owner) -> bool {
    POOL.lock().owners.as_ref().is_some_and(|owners| {
        frames.iter().all(|frame| owners.frames.state(*frame) == Some(FrameState::Owned(owner)))
    })
}

/// Leaves of the direct map, and what became of them since the start.
pub fn leaves() -> Leaves {
    POOL.lock().owners.as_ref().map_or(Leaves::default(), |owners| owners.frames.leaves())
}

/// Frames that are ready for an owner.
pub fn free_frames() -> u32 {
    POOL.lock().owners.as_ref().map_or(0, |owners| owners.frames.free_frames())
}

/// Makes secret memory of at least `bytes` bytes for a task. The caller is CPU `cpu` and holds no
/// lock.
///
/// # Errors
/// See [`SecretError`]; never `Wait`.
pub fn secret_create(cpu: usize, task: u32, bytes: u64) -> Result<SecretHandle, SecretError> {
    loop {
        let outcome = with_owners::<_, OwnershipError>(|owners, direct| {
            let outcome = owners.create(direct, task, bytes);
            let is_short = matches!(outcome, Err(SecretError::Frames(OwnershipError::Wait(_))));
            Ok((outcome, is_short && owners.reclaim(direct) > 0))
        })?;
        match outcome {
            // Some more frames are free: perhaps a whole block.
            (_, true) => {}
            (Err(SecretError::Frames(OwnershipError::Wait(request))), _) => {
                flush::wait(cpu, request);
            }
            (outcome, _) => return outcome,
        }
    }
}

/// Shows the blocks of a secret, in order, for its task's page table. No lock is held meanwhile.
///
/// # Errors
/// `BadHandle`.
pub fn secret_blocks(
    task: u32,
    handle: SecretHandle,
    show: impl FnMut(FrameRange<HostPhysical>),
) -> Result<(), SecretError> {
    let blocks = with_owners::<_, SecretError>(|owners, _| {
        Ok(owners.secrets.blocks(task, handle)?.collect::<ArrayVec<_, MOST_BLOCKS>>())
    })?;
    blocks.into_iter().for_each(show);
    Ok(())
}

/// Ends a secret, which its task's page table maps no more. When this returns it has been zeroed.
/// The caller is CPU `cpu` and holds no lock.
///
/// # Errors
/// `BadHandle`.
pub fn secret_destroy(cpu: usize, task: u32, handle: SecretHandle) -> Result<(), SecretError> {
    with_owners(|owners, direct| {
        let Owners { frames, secrets, .. } = owners;
        secrets.destroy(task, handle, frames, flush::epochs(), direct)
    })?;
    tidy(cpu);
    Ok(())
}

/// Notes that a window opens on a frame of the pool.
pub(super) fn open_window(frame: Hfn) -> Result<(), OwnershipError> {
    with_owners(|owners, _| owners.frames.open_window(frame))
}

/// Notes that it was closed.
pub(super) fn close_window(frame: Hfn) -> Result<(), OwnershipError> {
    with_owners(|owners, _| owners.frames.close_window(frame))
}

/// Has the direct map cover the block of 2 MiB that a frame lies in, whosever it is.
#[cfg(feature = "planted")]
pub fn cover(frame: Hfn) -> Result<(), PagingError> {
    let mut pool = POOL.lock();
    pool.direct.as_mut().ok_or(PagingError::OutOfMemory)?.cover(block_of(frame))
}

/// Undoes [`cover`].
#[cfg(feature = "planted")]
pub fn uncover(frame: Hfn) {
    if let Some(direct) = POOL.lock().direct.as_mut() {
        frames::DirectMap::unmap(direct, block_of(frame));
    }
}

#[cfg(feature = "planted")]
fn block_of(frame: Hfn) -> FrameRange<HostPhysical> {
    let size = addr::FRAMES_PER_2M;
    FrameRange::with_count(Hfn::new(frame.raw() / size * size), size)
}

/// Makes the direct map part of a CPU's space, for good.
pub(super) fn link_direct_map(root: &mut PageTable<X86_64>) -> Result<(), PagingError> {
    let mut pool = POOL.lock();
    pool.direct.as_mut().ok_or(PagingError::OutOfMemory)?.link_into(root)
}

/// Shows who owns what to `look`; nothing changes meanwhile.
/// `None` before there are owners.
pub(super) fn with_records<T>(look: impl FnOnce(&Frames, &SecretTable) -> T) -> Option<T> {
    let pool = POOL.lock();
    let owners = pool.owners.as_ref()?;
    Some(look(&owners.frames, &owners.secrets))
}

/// Does `work` under the lock.
fn with_owners<T, E: From<OwnershipError>>(
    work: impl FnOnce(&mut Owners, &mut Direct) -> Result<T, E>,
) -> Result<T, E> {
    let mut pool = POOL.lock();
    let Pool { direct: Some(direct), owners: Some(owners), .. } = &mut *pool else {
        return Err(OwnershipError::OutOfMemory.into());
    };
    direct.settle();
    let outcome = work(owners, direct);
    owners.keep_up(direct);
    outcome
}

impl Owners {
    /// Gives a frame to `owner`, out of quarantine if need be.
    fn take(&mut self, direct: &mut Direct, owner: Owner) -> Result<Hfn, OwnershipError> {
        match self.allocate(direct, owner) {
            Err(OwnershipError::Wait(_)) if self.reclaim(direct) > 0 => {
                self.allocate(direct, owner)
            }
            outcome => outcome,
        }
    }

    fn allocate(&mut self, direct: &mut Direct, owner: Owner) -> Result<Hfn, OwnershipError> {
        if owner != Owner::Hv {
            self.check_share(1)?;
        }
        let frame = self.frames.allocate(owner, flush::epochs(), direct)?;
        self.hv += u64::from(owner == Owner::Hv);
        Ok(frame)
    }

    fn create(
        &mut self,
        direct: &mut Direct,
        task: u32,
        bytes: u64,
    ) -> Result<SecretHandle, SecretError> {
        let blocks = bytes.div_ceil(FRAMES_PER_2M * PAGE_SIZE);
        // Of one that is too large another error is told.
        if blocks <= MOST_BLOCKS as u64 {
            self.check_share(blocks * FRAMES_PER_2M)?;
        }
        self.secrets.create(task, bytes, &mut self.frames, flush::epochs(), direct)
    }

    /// Whether others than the hypervisor may have `count` frames more.
    fn check_share(&self, count: u64) -> Result<(), OwnershipError> {
        let all = self.frames.range().count();
        let others = all.saturating_sub(u64::from(self.frames.free_frames()) + self.hv);
        if others.saturating_add(count) <= self.most {
            return Ok(());
        }
        Err(self.frames.waits_for().map_or(OwnershipError::OutOfMemory, OwnershipError::Wait))
    }

    fn give_back(
        &mut self,
        direct: &mut Direct,
        frame: Hfn,
        owner: Owner,
    ) -> Result<(), OwnershipError> {
        self.frames.free(frame, owner, flush::epochs(), direct)?;
        self.hv -= u64::from(owner == Owner::Hv);
        Ok(())
    }

    /// Zeroes some frames that every CPU has forgotten, and answers how many.
    fn reclaim(&mut self, direct: &mut Direct) -> u32 {
        self.frames.reclaim(flush::epochs(), BATCH, |frame| {
            if direct.has(frame) {
                clear(FrameRange::with_count(frame, 1));
            } else {
                window::clear_vacant(frame);
            }
        })
    }

    /// Brings the direct map's store of table pages to its size, and asks for a flush when many
    /// frames wait for one: who takes table pages cannot wait.
    fn keep_up(&mut self, direct: &mut Direct) {
        while direct.lacks() > 0
            && let Ok(page) = self.take(direct, Owner::Hv)
        {
            direct.add(page);
        }
        while let Some(page) = direct.surplus() {
            // The page is the hypervisor's, and no window opens on those.
            let _ = self.give_back(direct, page, Owner::Hv);
        }
        let next = flush::epochs().covering();
        if self.frames.quarantined_frames() >= BATCH
            && self.frames.waits_for().is_some_and(|request| request >= next)
        {
            flush::epochs().request();
        }
    }
}

/// Where a pool frame's bytes are mapped.
fn bytes_of(frames: FrameRange<HostPhysical>) -> *mut u8 {
    DIRECT_MAP.plus(frames.start.start().raw()).raw() as *mut u8
}

/// Zeroes frames that are in the direct map, and in no other use.
pub(super) fn clear(frames: FrameRange<HostPhysical>) {
    let length = addr::length(frames.count() * PAGE_SIZE);
    // SAFETY: the frames are the pool's and mapped; nobody has a reference to their bytes.
    unsafe { bytes_of(frames).write_bytes(0, length) };
}

/// Takes frames for the hypervisor, zeroed: any number in a row before there are owners, a single
/// one after that. Waits for nobody.
fn take_own(count: u64) -> Option<FrameRange<HostPhysical>> {
    let region = region();
    let mut pool = POOL.lock();
    let Pool { used, direct, owners } = &mut *pool;
    let Some(owners) = owners else {
        let end = used.checked_add(count).filter(|end| *end <= region.count())?;
        let frames = FrameRange::with_count(region.start.plus(*used), count);
        *used = end;
        clear(frames);
        return Some(frames);
    };
    let direct = direct.as_mut().filter(|_| count == 1)?;
    direct.settle();
    let frame = owners.take(direct, Owner::Hv).ok()?;
    owners.keep_up(direct);
    Some(FrameRange::with_count(frame, 1))
}

/// Memory for `count` values, for ever.
fn leak_filled<T: Clone>(count: u64, value: T) -> Option<&'static mut [T]> {
    let bytes = count.checked_mul(size_of::<T>() as u64)?;
    let first = bytes_of(take_own(bytes.div_ceil(PAGE_SIZE))?).cast::<T>();
    let count = addr::length(count);
    for index in 0..count {
        // SAFETY: the frames have room for `count` values, are aligned to pages, and nobody else's.
        unsafe { first.add(index).write(value.clone()) };
    }
    // SAFETY: as above; each value has just been written.
    Some(unsafe { core::slice::from_raw_parts_mut(first, count) })
}
