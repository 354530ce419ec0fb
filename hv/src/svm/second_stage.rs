//! Nested page tables as the second stage. With GMET one table tells user execution from supervisor
//! execution; without it there are two tables where that is wanted, and both arguments of `rights`
//! are the same.

use crate::vendor::{SecondStage, SplitExecution};
use integrity::Rights;
use mtrr::MemoryType;
use paging::{Npt, NptExecute, NptRights};

impl SecondStage for Npt {
    /// The CPU takes memory types from the guest's own tables and the machine's MTRRs (APM
    /// 15.25.8); leaves say nothing of them.
    fn rights(
        kernel: Rights,
        user: Rights,
        split: Option<SplitExecution>,
        _memory_type: MemoryType,
    ) -> NptRights {
        let both = kernel.intersection(user);
        let executes = |rights: Rights| rights.contains(Rights::EXECUTE);
        NptRights {
            read: both.contains(Rights::READ),
            write: both.contains(Rights::WRITE),
            execute: match split {
                Some(_) => NptExecute::with_gmet(executes(kernel), executes(user)),
                None => NptExecute::without_gmet(executes(both)),
            },
        }
    }

    fn allowed(rights: NptRights, split: Option<SplitExecution>) -> Rights {
        let mut allowed = Rights::empty();
        allowed.set(Rights::READ, rights.read);
        allowed.set(Rights::WRITE, rights.write);
        allowed.set(Rights::EXECUTE, rights.execute.allows_supervisor(split.is_some()));
        allowed
    }
}
