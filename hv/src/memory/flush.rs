//! Flushes of the hypervisor's own translations: how it is known that every CPU has forgotten a
//! leaf of the direct map, or of a task's table, that was changed.
//!
//! What always holds:
//! - A change, then a request, then a flush on every CPU, then its acknowledgement
//!   ([`frames::Epochs`]). Nobody is interrupted: a CPU flushes when it comes back from a guest and
//!   wherever it waits.
//! - A CPU that runs a guest is *away*: it acknowledges everything, since it uses no translation of
//!   the hypervisor's. Its TLB keeps them, so it flushes before it uses any again, if there was a
//!   request. Between its exit and [`Place::come_back`] it touches the image, whose mapping never changes,
//!   and its own control block and root, which are the hypervisor's for good.
//! - Nobody waits for a flush with a lock held that another CPU may spin on.

use crate::cpu::instructions;
use abi::MAX_CPUS;
use frames::{Epochs, FlushDue};
use paging::{Due, Flushed};

static EPOCHS: Epochs<MAX_CPUS> = Epochs::new();

/// The counters, for changes of owner.
pub(super) fn epochs() -> &'static Epochs<MAX_CPUS> {
    &EPOCHS
}

/// The calling CPU, which flushes right after this, begins to use translations that may change.
pub fn enter(cpu: usize) {
    EPOCHS.enter(cpu);
}

/// Where a CPU notes that it is away. Used by that CPU only.
#[derive(Clone, Copy)]
pub struct Place(frames::Place<'static>);

impl Place {
    /// The place of CPU `cpu`; `None` if there are not so many.
    pub fn of(cpu: usize) -> Option<Self> {
        EPOCHS.place(cpu).map(Self)
    }

    /// The CPU goes to its guest, or to a task. The answer is for [`Place::come_back`].
    #[inline]
    pub fn leave(self) -> u64 {
        self.0.leave()
    }

    /// The CPU is back; flushes if there was a request since `last`.
    #[inline]
    pub fn come_back(self, last: u64) {
        if let Some(due) = EPOCHS.come_back(self.0, last) {
            flush(due);
        }
    }
}

/// Flushes if there was a request. To be called again and again wherever a CPU waits.
pub fn serve(cpu: usize) {
    if let Some(due) = EPOCHS.due(cpu) {
        flush(due);
    }
}

#[cold]
fn flush(due: FlushDue<'_>) {
    #[cfg(feature = "planted")]
    if crate::planted::is_deaf() {
        return due.done();
    }
    let root = instructions::read_cr3();
    // SAFETY: the root in force stays in force. Without PCIDs and global leaves, loading it forgets
    // everything.
    unsafe { instructions::load_cr3(root) };
    due.done();
}

/// Waits until every CPU has flushed for `request`, which may be yet to be made. The caller, CPU
/// `cpu`, holds no lock.
pub fn wait(cpu: usize, request: u64) {
    while EPOCHS.covering() <= request {
        EPOCHS.request();
    }
    loop {
        serve(cpu);
        if EPOCHS.acknowledged() >= request {
            return;
        }
        instructions::spin_hint();
    }
}

/// Has every CPU flush after a change of a table of the hypervisor's or of a task's, and waits for
/// it. The caller, CPU `cpu`, holds no lock.
pub fn all(cpu: usize, due: Due<'_>) -> Flushed<'_> {
    everywhere(cpu);
    due.acknowledged()
}

/// Has every CPU flush, and waits until each has come by: whatever it was doing before, it has
/// ended, windows included. The caller, CPU `cpu`, holds no lock.
pub fn everywhere(cpu: usize) {
    wait(cpu, EPOCHS.request());
}
