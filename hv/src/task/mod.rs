//! Tasks: programs at CPL 3 in root mode, for what needs thought and no privilege. A task that
//! faults, loops or asks for too much is stopped and reported, and everything else goes on.
//!
//! Reading order: [`load`], [`memory`] (a task's address space), [`area`] (the way to CPL 3 and
//! back), [`calls`], [`secret`], [`inbox`], [`turn`] (when tasks run, and for how long).
//!
//! What always holds:
//! - A task runs on one CPU at a time: on the one that holds the lock of its [`Slot`].
//! - It runs only where the guest would accept an interrupt, so that one may stop it; or one
//!   instruction at a time.
//! - Nothing that a task passes is believed: see [`memory`].

pub mod area;
pub mod calls;
pub mod inbox;
pub mod load;
pub mod memory;
pub mod secret;
pub mod turn;

use crate::log;
use crate::memory::{flush, pool};
use addr::{Gfn, Hva};
use area::Area;
use arrayvec::{ArrayString, ArrayVec};
use core::sync::atomic::{AtomicU32, Ordering};
use frames::Leaves;
use inbox::{Inbox, Post};
use memory::{Here, Kept, Space};
use paging::{PageTable, X86_64};
use secret::Mapped;
use spin::mutex::{SpinMutex, SpinMutexGuard};

/// Most tasks: the warden, and others.
pub const MOST_TASKS: usize = 1 + boot_info::MOST_TASKS;
/// The task that is told what happens, and asked.
pub const WARDEN: usize = 0;

/// A task that has not ended.
pub struct Task {
    id: u32,
    name: ArrayString<16>,
    area: Area,
    space: Space,
    secrets: ArrayVec<Mapped, { secret::MOST }>,
    /// Where it wants the next message, while it waits for one.
    waits: Option<Hva>,
    grant: Option<Grant>,
    grants: u32,
    /// What it has last answered, and to which message.
    answer: Option<(u64, u64)>,
    spent: turn::Spent,
}

/// Guest memory that a task may look at until it waits again.
#[derive(Clone, Copy)]
struct Grant {
    number: u32,
    frame: Gfn,
}

/// Where a task is kept. The lock of `task` is held by the CPU on which it runs; nobody waits for
/// it with another lock held.
struct Slot {
    inbox: SpinMutex<Inbox>,
    kept: SpinMutex<Kept>,
    task: SpinMutex<Option<Task>>,
}

static SLOTS: [Slot; MOST_TASKS] = [const {
    Slot {
        inbox: SpinMutex::new(Inbox::new()),
        kept: SpinMutex::new(Kept::new_const()),
        task: SpinMutex::new(None),
    }
}; MOST_TASKS];
/// A bit per task that may have something to do. Set before anybody looks whether the task runs,
/// cleared by the CPU that runs it.
static READY: AtomicU32 = AtomicU32::new(0);
/// A bit per task that was loaded and has not ended.
static ALIVE: AtomicU32 = AtomicU32::new(0);

/// Whether a task may have something to do.
#[inline(always)]
pub fn is_any_ready() -> bool {
    READY.load(Ordering::Relaxed) != 0
}

/// Whether there is a warden.
pub fn has_warden() -> bool {
    ALIVE.load(Ordering::Relaxed) & 1 << WARDEN != 0
}

fn make_ready(number: usize) {
    READY.fetch_or(1 << number, Ordering::SeqCst);
}

/// Sends a message to the warden, if there is one. It runs as soon as the guest would accept an
/// interrupt.
pub fn tell_warden(post: Post) {
    if has_warden()
        && let Some(slot) = SLOTS.get(WARDEN)
    {
        slot.inbox.lock().push(post);
        make_ready(WARDEN);
    }
}

/// Keeps all tasks from running until the answer is dropped. The caller, CPU `cpu`, holds no lock.
pub fn hold_all(cpu: usize) -> Held {
    let wait_for = |slot: &'static Slot| loop {
        match slot.task.try_lock() {
            Some(task) => break task,
            // Its turn ends at the next interrupt, at the latest.
            None => flush::serve(cpu),
        }
    };
    SLOTS.iter().map(wait_for).collect()
}

/// All tasks, stopped.
pub type Held = ArrayVec<SpinMutexGuard<'static, Option<Task>>, MOST_TASKS>;

impl Task {
    /// Its number, and its page table.
    pub fn table(&self) -> (u32, &PageTable<X86_64>) {
        (self.id, self.space.table())
    }

    /// Ends a task: all that it had goes back.
    fn end(mut self, here: Here<'_>, why: core::fmt::Arguments<'_>) {
        ALIVE.fetch_and(!(1 << self.id), Ordering::SeqCst);
        log!("task {} ({}): stopped: {why}", self.id, self.name);
        secret::destroy_all(&mut self, here);
        self.space.destroy(here);
        pool::tidy(here.cpu);
        let Leaves { large, small, splits, collapses } = pool::leaves();
        log!(
            "direct map: {large} leaves of 2 MiB, {small} of 4 KiB; {splits} splits and {collapses} \
             collapses so far"
        );
    }
}
