//! Extended page tables as the second stage.

use super::ept_capabilities;
use crate::vendor::{SecondStage, SplitExecution};
use integrity::Rights;
use mtrr::MemoryType;
use paging::{Ept, EptData, EptRights};

impl SecondStage for Ept {
    /// `memory_type` takes the place of the MTRRs, which do not count in the guest; its PAT does
    /// (SDM 3C, 29.3.7.2).
    fn rights(
        kernel: Rights,
        user: Rights,
        _split: Option<SplitExecution>,
        memory_type: MemoryType,
    ) -> EptRights {
        let data = kernel.intersection(user);
        EptRights {
            data: if data.contains(Rights::READ | Rights::WRITE) {
                EptData::ReadWrite
            } else if data.contains(Rights::READ) {
                EptData::Read
            } else {
                // Rights without READ are asked for only where they can be had.
                ept_capabilities().execute_only().map_or(EptData::Hidden, EptData::ExecuteOnly)
            },
            supervisor_execute: kernel.contains(Rights::EXECUTE),
            user_execute: user.contains(Rights::EXECUTE),
            memory_type,
        }
    }

    fn allowed(rights: EptRights, _split: Option<SplitExecution>) -> Rights {
        let data = match rights.data {
            EptData::Hidden => return Rights::empty(),
            EptData::ExecuteOnly(_) => Rights::empty(),
            EptData::Read => Rights::READ,
            EptData::ReadWrite => Rights::READ | Rights::WRITE,
        };
        let execute = if rights.supervisor_execute { Rights::EXECUTE } else { Rights::empty() };
        data | execute
    }
}
