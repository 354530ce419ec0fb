//! Nested page tables as the second stage. They do not tell the modes apart: where that is wanted
//! there are two tables, and both arguments of `rights` are the same.

use crate::vendor::SecondStage;
use integrity::Rights;
use mtrr::MemoryType;
use paging::{Npt, NptRights};

impl SecondStage for Npt {
    /// The CPU takes memory types from the guest's own tables and the machine's MTRRs (APM
    /// 15.25.8); leaves say nothing of them.
    fn rights(kernel: Rights, user: Rights, _memory_type: MemoryType) -> NptRights {
        let both = kernel.intersection(user);
        NptRights {
            read: both.contains(Rights::READ),
            write: both.contains(Rights::WRITE),
            execute: both.contains(Rights::EXECUTE),
        }
    }

    fn allowed(rights: NptRights) -> Rights {
        let mut allowed = Rights::empty();
        allowed.set(Rights::READ, rights.read);
        allowed.set(Rights::WRITE, rights.write);
        allowed.set(Rights::EXECUTE, rights.execute);
        allowed
    }
}
