//! The memory of a task: its page table, its frames, and copies between them and the hypervisor.
//!
//! What always holds: a leaf that the task can use leads to a frame that the task owns, or to a
//! secret of its own; no page is writable and executable, and none becomes executable after the
//! start. The hypervisor never follows an address of a task's: it looks it up in the task's table
//! and opens a window on the frame, so that secrets are out of its reach.

use crate::memory::pool::{self, Frames64, Tables};
use crate::memory::space;
use crate::memory::window::Windows;
use abi::task::{CallError, END, START};
use addr::{FrameRange, Hfn, HostVirtual, Hva, PAGE_SIZE};
use arrayvec::ArrayVec;
use frames::{Owner, OwnershipError};
use paging::{HostRights, Level, PageTable, PagingError, X86_64};
use spin::mutex::SpinMutex;

/// The CPU that does it.
#[derive(Clone, Copy)]
pub struct Here<'a> {
    /// Its index.
    pub cpu: usize,
    /// Its windows.
    pub windows: &'a Windows,
}

/// A task's address space.
pub struct Space {
    table: PageTable<X86_64>,
    owner: Owner,
    /// Frames that [`Space::map`] may still take.
    quota: u32,
    /// Frames of the task that it does not map at the moment.
    kept: &'static SpinMutex<Kept>,
}

/// Frames that a task has unmapped.
pub type Kept = ArrayVec<Hfn, KEPT>;

/// Most of them: 2 MiB. None in the test build in which all that is unmapped changes hands.
const KEPT: usize = if cfg!(feature = "handing") { 0 } else { 512 };

/// Rights of a task's page.
pub const fn user(write: bool, execute: bool) -> HostRights {
    HostRights { write, execute, user: true, uncached: false }
}

/// The pages from `address` on, if they are a task's to use.
pub fn pages(address: u64, count: u64) -> Result<FrameRange<HostVirtual>, CallError> {
    let end = count.checked_mul(PAGE_SIZE).and_then(|bytes| address.checked_add(bytes));
    let inside = end.is_some_and(|end| end <= END) && address >= START;
    if inside && count > 0 && address.is_multiple_of(PAGE_SIZE) {
        Ok(FrameRange::with_count(Hva::new(address).frame(), count))
    } else {
        Err(CallError::Invalid)
    }
}

/// The pages in parts of at most 64.
fn parts(pages: FrameRange<HostVirtual>) -> impl Iterator<Item = FrameRange<HostVirtual>> {
    let size = Frames64::new().capacity();
    (0..pages.count()).step_by(size).map(move |offset| {
        let start = pages.start.plus(offset);
        FrameRange::with_count(start, (pages.count() - offset).min(size as u64))
    })
}

fn no_memory(_: OwnershipError) -> CallError {
    CallError::NoMemory
}

fn refused(error: PagingError) -> CallError {
    match error {
        PagingError::OutOfMemory => CallError::NoMemory,
        PagingError::AlreadyMapped { .. } => CallError::Exists,
        PagingError::NotMapped { .. } => CallError::BadAddress,
        PagingError::Shared { .. } | PagingError::OutOfRange { .. } => CallError::Invalid,
    }
}

impl Space {
    /// An empty space of task `id`, which may map `quota` frames.
    pub fn new(id: u32, quota: u32, kept: &'static SpinMutex<Kept>) -> Result<Self, CallError> {
        let table = space::new_task_table().map_err(refused)?;
        Ok(Self { table, owner: Owner::Task(id), quota, kept })
    }

    /// For CR3.
    pub fn root(&self) -> Hfn {
        self.table.root()
    }

    /// Says how many frames may still be mapped.
    pub fn set_quota(&mut self, frames: u32) {
        self.quota = frames;
    }

    /// The table, for the audit.
    pub fn table(&self) -> &PageTable<X86_64> {
        &self.table
    }

    /// Maps zeroed frames, all or none.
    pub fn map(
        &mut self,
        here: Here<'_>,
        pages: FrameRange<HostVirtual>,
        rights: HostRights,
    ) -> Result<(), CallError> {
        let count = u32::try_from(pages.count()).map_err(|_| CallError::Invalid)?;
        let left = self.quota.checked_sub(count).ok_or(CallError::NoMemory)?;
        for part in parts(pages) {
            if let Err(error) = self.map_part(here, part, rights) {
                self.unmap_mapped(FrameRange::new(pages.start, part.start));
                return Err(error);
            }
        }
        self.quota = left;
        Ok(())
    }

    /// Maps at most 64 pages, all or none.
    fn map_part(
        &mut self,
        here: Here<'_>,
        part: FrameRange<HostVirtual>,
        rights: HostRights,
    ) -> Result<(), CallError> {
        let frames = self.take(here, addr::length(part.count()))?;
        for (number, (page, frame)) in part.iter().zip(&frames).enumerate() {
            let page = FrameRange::with_count(page, 1);
            let mapped = self.table.map(&mut Tables, page, *frame, rights, Level::Page4K);
            if let Err(error) = mapped {
                self.unmap_mapped(FrameRange::new(part.start, page.start));
                // The others were never mapped.
                self.give_back(frames.get(number..).unwrap_or_default());
                return Err(refused(error));
            }
        }
        Ok(())
    }

    /// Unmaps pages and gives their frames back, all or none.
    pub fn unmap(&mut self, pages: FrameRange<HostVirtual>) -> Result<(), CallError> {
        for part in parts(pages) {
            let frames = self.frames_of(part);
            let all = frames.len() as u64 == part.count();
            if !all || !pool::are_owned(&frames, self.owner) {
                return Err(CallError::BadAddress);
            }
        }
        self.unmap_mapped(pages);
        self.quota += u32::try_from(pages.count()).unwrap_or(0);
        Ok(())
    }

    /// The frames behind at most 64 pages, as far as the task may use them.
    fn frames_of(&self, part: FrameRange<HostVirtual>) -> Frames64 {
        let runs = self.table.cursor(&Tables, part).ok();
        let users = runs.into_iter().flatten().filter(|(_, leaf)| leaf.rights.user);
        let frames = users
            .flat_map(|(pages, leaf)| FrameRange::with_count(leaf.frame, pages.count()).iter());
        frames.take(Frames64::new().capacity()).collect()
    }

    /// Unmaps pages; those that are mapped lead to frames of the task by leaves of 4 KiB, so that
    /// nothing is split and nothing can fail.
    fn unmap_mapped(&mut self, pages: FrameRange<HostVirtual>) {
        for part in parts(pages) {
            let frames = self.frames_of(part);
            self.unmap_leaves(part);
            self.give_back(&frames);
        }
    }

    /// Frames of the task, zeroed: those that it has unmapped before, then new ones.
    fn take(&mut self, here: Here<'_>, count: usize) -> Result<Frames64, CallError> {
        let mut frames = Frames64::new();
        while frames.len() < count
            && let Some(frame) = self.kept.lock().pop()
        {
            frames.push(frame);
        }
        if frames.len() < count {
            match pool::take(here.cpu, self.owner, count - frames.len()) {
                Ok(more) => frames.extend(more),
                Err(error) => {
                    self.give_back(&frames);
                    return Err(no_memory(error));
                }
            }
        }
        Ok(frames)
    }

    /// Keeps frames that the task has unmapped, zeroed, for when it maps some again: so long they
    /// change no owner, and nobody has to flush. What finds no room goes back to the pool.
    fn give_back(&mut self, frames: &[Hfn]) {
        let mut kept = self.kept.lock();
        let room = KEPT - kept.len();
        let (mine, others) = frames.split_at(room.min(frames.len()));
        pool::clear_unmapped(mine);
        kept.extend(mine.iter().copied());
        drop(kept);
        // They were the task's until now.
        let _ = pool::give_back(others, self.owner);
    }

    fn unmap_leaves(&mut self, pages: FrameRange<HostVirtual>) {
        if let Ok(removed) = self.table.unmap(&mut Tables, pages) {
            // The task is stopped, and runs on one CPU at a time: it is entered by a load of CR3,
            // and left by another, which forget its translations.
            removed.release(&mut Tables, |due| due.unnecessary());
        }
    }

    /// Maps a block of a secret.
    pub fn map_secret(&mut self, at: FrameRange<HostVirtual>, block: Hfn) -> Result<(), CallError> {
        let rights = user(true, false);
        self.table.map(&mut Tables, at, block, rights, Level::Page2M).map_err(refused)
    }

    /// Unmaps the blocks of a secret, which keeps its frames.
    pub fn unmap_secret(&mut self, at: FrameRange<HostVirtual>) {
        self.unmap_leaves(at);
    }

    /// Unmaps everything, gives all frames back, and the table.
    pub fn destroy(mut self, here: Here<'_>) {
        let all = FrameRange::new(Hva::new(START).frame(), Hva::new(END).frame());
        loop {
            let next = self.table.cursor(&Tables, all).ok().and_then(|mut leaves| leaves.next());
            let Some((pages, _)) = next else { break };
            self.unmap_mapped(pages);
        }
        let kept = core::mem::take(&mut *self.kept.lock());
        // They were the task's until now.
        let _ = pool::give_back(&kept, self.owner);
        space::destroy_task_table(here.cpu, self.table);
    }

    /// The frame behind an address that the task may use, and write if `write`.
    fn find(&self, address: u64, write: bool) -> Result<Hfn, CallError> {
        let page = pages(address & !(PAGE_SIZE - 1), 1).map_err(|_| CallError::BadAddress)?;
        let leaf = self.table.walk(&Tables, page.start).ok_or(CallError::BadAddress)?;
        let allowed = leaf.rights.user && (leaf.rights.write || !write);
        allowed.then_some(leaf.frame).ok_or(CallError::BadAddress)
    }

    /// Copies out of the task.
    pub fn read(&self, here: Here<'_>, address: u64, buffer: &mut [u8]) -> Result<(), CallError> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = address.checked_add(done as u64).ok_or(CallError::BadAddress)?;
            let frame = self.find(at, false)?;
            let window = here.windows.open(frame).ok_or(CallError::BadAddress)?;
            done += window.read(Hva::new(at).offset(), rest);
        }
        Ok(())
    }

    /// Copies into the task, where it may write itself.
    pub fn write(&self, here: Here<'_>, address: u64, bytes: &[u8]) -> Result<(), CallError> {
        self.store(here, address, bytes, true)
    }

    /// Copies into the task, before it runs, whatever its own rights are.
    pub fn fill(&self, here: Here<'_>, address: u64, bytes: &[u8]) -> Result<(), CallError> {
        self.store(here, address, bytes, false)
    }

    fn store(
        &self,
        here: Here<'_>,
        address: u64,
        bytes: &[u8],
        as_task: bool,
    ) -> Result<(), CallError> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let at = address.checked_add(done as u64).ok_or(CallError::BadAddress)?;
            let frame = self.find(at, as_task)?;
            let window = here.windows.open(frame).ok_or(CallError::BadAddress)?;
            done += window.write(Hva::new(at).offset(), rest);
        }
        Ok(())
    }
}
