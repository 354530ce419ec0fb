//! Test build only: frames of tasks that go from one use to the next without leaving their owner,
//! zeroed and nothing else. `cargo xtask bench` compares with it.

use super::{Frames64, clear_unmapped};
use addr::Hfn;
use arrayvec::ArrayVec;
use frames::Owner;
use spin::mutex::SpinMutex;

/// Frames of task 1, the only one that takes and gives back in that comparison.
static KEPT: SpinMutex<ArrayVec<Hfn, 1024>> = SpinMutex::new(ArrayVec::new_const());
const TASK: Owner = Owner::Task(1);

/// Takes up to `count` of them.
pub fn take(owner: Owner, count: usize, taken: &mut Frames64) {
    let mut kept = KEPT.lock();
    while owner == TASK && taken.len() < count {
        let Some(frame) = kept.pop() else { break };
        taken.push(frame);
    }
}

/// Keeps as many as there is room for, and answers the others.
pub fn keep(frames: &[Hfn], owner: Owner) -> &[Hfn] {
    let mut kept = KEPT.lock();
    let room = if owner == TASK { kept.remaining_capacity() } else { 0 };
    let (mine, others) = frames.split_at(room.min(frames.len()));
    clear_unmapped(mine);
    kept.extend(mine.iter().copied());
    others
}
