//! Test build only: frames of tasks that go from one use to the next without leaving their owner,
//! zeroed and nothing else. `cargo xtask bench` compares with it.

use super::POOL;
use crate::memory::window;
use addr::Hfn;
use arrayvec::ArrayVec;
use frames::Owner;
use spin::mutex::SpinMutex;

/// Frames of task 1, the only one that takes and gives back in that comparison.
static KEPT: SpinMutex<ArrayVec<Hfn, 1024>> = SpinMutex::new(ArrayVec::new_const());
const TASK: Owner = Owner::Task(1);

pub fn take(owner: Owner) -> Option<Hfn> {
    if owner == TASK { KEPT.lock().pop() } else { None }
}

pub fn keep(frame: Hfn, owner: Owner) -> bool {
    let mut kept = KEPT.lock();
    if owner != TASK || kept.is_full() {
        return false;
    }
    // The window that zeroes is used with this lock held.
    let _pool = POOL.lock();
    window::clear_vacant(frame);
    kept.push(frame);
    true
}
