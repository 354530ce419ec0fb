//! Secret memory of tasks: in the task's own page table and nowhere else. No window opens on it
//! ([`frames::Owner::Secret`]), so that the hypervisor itself can neither read nor write it.

use super::Task;
use super::memory::Here;
use crate::memory::pool;
use abi::task::{CallError, END, START};
use addr::{FRAMES_PER_2M, FrameRange, HostVirtual, Hva, PAGE_SIZE};
use arrayvec::ArrayVec;
use frames::{MOST_BLOCKS, SecretError, SecretHandle};

/// Most secrets of a task.
pub const MOST: usize = 8;
const BLOCK_BYTES: u64 = FRAMES_PER_2M * PAGE_SIZE;

/// A secret of a task.
pub struct Mapped {
    handle: SecretHandle,
    /// Where its first block is mapped.
    at: Option<Hva>,
}

fn refused(error: SecretError) -> CallError {
    match error {
        SecretError::BadSize(0) => CallError::Invalid,
        // More than any secret may have is beyond every quota.
        SecretError::BadSize(_) | SecretError::Quota { .. } | SecretError::Frames(_) => {
            CallError::NoMemory
        }
        SecretError::NoSlot => CallError::TooMany,
        SecretError::BadHandle => CallError::BadHandle,
    }
}

fn find(task: &Task, handle: u64) -> Result<usize, CallError> {
    let is_it = |secret: &Mapped| u64::from(secret.handle.raw()) == handle;
    task.secrets.iter().position(is_it).ok_or(CallError::BadHandle)
}

/// Makes a secret of `bytes` bytes, rounded up to blocks of 2 MiB, and answers its handle.
pub fn create(task: &mut Task, here: Here<'_>, bytes: u64) -> Result<u64, CallError> {
    if task.secrets.is_full() {
        return Err(CallError::TooMany);
    }
    let handle = pool::secret_create(here.cpu, task.id, bytes).map_err(refused)?;
    // There is room.
    let _ = task.secrets.try_push(Mapped { handle, at: None });
    Ok(u64::from(handle.raw()))
}

/// The blocks of a secret at the addresses that they have when it is mapped at `at`.
fn blocks(
    task: &Task,
    handle: SecretHandle,
    at: Hva,
) -> Result<ArrayVec<(FrameRange<HostVirtual>, addr::Hfn), MOST_BLOCKS>, CallError> {
    let mut blocks = ArrayVec::new();
    let mut next = at;
    pool::secret_blocks(task.id, handle, |block| {
        let pages = FrameRange::with_count(next.frame(), block.count());
        // A secret has no more blocks than that.
        let _ = blocks.try_push((pages, block.start));
        next = next.plus(BLOCK_BYTES);
    })
    .map_err(refused)?;
    Ok(blocks)
}

/// Maps a secret as a whole, writable.
pub fn map(task: &mut Task, handle: u64, address: u64) -> Result<(), CallError> {
    let index = find(task, handle)?;
    let Some(secret) = task.secrets.get(index) else { return Err(CallError::BadHandle) };
    if secret.at.is_some() {
        return Err(CallError::Exists);
    }
    if !(START..END).contains(&address) || !address.is_multiple_of(BLOCK_BYTES) {
        return Err(CallError::Invalid);
    }
    let at = Hva::new(address);
    let blocks = blocks(task, secret.handle, at)?;
    if blocks.last().is_some_and(|(pages, _)| pages.end > Hva::new(END).frame()) {
        return Err(CallError::Invalid);
    }
    for (number, (pages, block)) in blocks.iter().enumerate() {
        if let Err(error) = task.space.map_secret(*pages, *block) {
            for (pages, _) in blocks.iter().take(number) {
                task.space.unmap_secret(*pages);
            }
            return Err(error);
        }
    }
    if let Some(secret) = task.secrets.get_mut(index) {
        secret.at = Some(at);
    }
    Ok(())
}

/// Unmaps a secret, which keeps its contents.
pub fn unmap(task: &mut Task, handle: u64) -> Result<(), CallError> {
    let index = find(task, handle)?;
    let secret = task.secrets.get_mut(index).ok_or(CallError::BadHandle)?;
    let at = secret.at.take().ok_or(CallError::BadAddress)?;
    let handle = secret.handle;
    for (pages, _) in blocks(task, handle, at)? {
        task.space.unmap_secret(pages);
    }
    Ok(())
}

/// Unmaps a secret if it is mapped, and ends it.
pub fn destroy(task: &mut Task, here: Here<'_>, handle: u64) -> Result<(), CallError> {
    let index = find(task, handle)?;
    match unmap(task, handle) {
        Ok(()) | Err(CallError::BadAddress) => {}
        Err(error) => return Err(error),
    }
    let secret = task.secrets.remove(index);
    pool::secret_destroy(here.cpu, task.id, secret.handle).map_err(refused)
}

/// Ends all secrets of a task.
pub fn destroy_all(task: &mut Task, here: Here<'_>) {
    while let Some(secret) = task.secrets.last() {
        let handle = u64::from(secret.handle.raw());
        if destroy(task, here, handle).is_err() {
            // Unknown to the pool: there is nothing to give back.
            task.secrets.pop();
        }
    }
}
