//! Extended page tables as the second stage.

use crate::vendor::SecondStage;
use integrity::Rights;
use paging::{Ept, EptData, EptRights, MemoryType};

impl SecondStage for Ept {
    /// Device memory is uncached unless the guest's own tables make it write-combining; RAM is
    /// cached as they say (SDM 3C, 29.3.7.2).
    fn rights(kernel: Rights, user: Rights, ram: bool) -> EptRights {
        let data = kernel.intersection(user);
        EptRights {
            data: if data.contains(Rights::READ | Rights::WRITE) {
                EptData::ReadWrite
            } else if data.contains(Rights::READ) {
                EptData::Read
            } else {
                EptData::Hidden
            },
            supervisor_execute: kernel.contains(Rights::EXECUTE),
            user_execute: user.contains(Rights::EXECUTE),
            memory_type: if ram { MemoryType::WriteBack } else { MemoryType::Uncacheable },
        }
    }

    fn allowed(rights: EptRights) -> Rights {
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
