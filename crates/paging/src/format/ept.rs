//! Intel's second stage: extended page tables, which translate guest-physical addresses (Intel SDM
//! volume 3C, section 29.3; 28.3 in older editions).
//!
//! What always holds: no entry written here is misconfigured (section 29.3.3.1). Writing without
//! reading cannot be expressed, and fetching without reading needs an [`ExecuteOnly`]. What the
//! caller sees to: frames lie in the CPU's physical address width, and leaves are at most
//! [`EptCapabilities::largest_leaf`].
//!
//! Entries suppress virtualization exceptions (#VE), but an empty one is all zero and does not:
//! the VM-execution control "EPT-violation #VE" must stay 0.

mod capabilities;

use super::{Entry, Format, Level, frame_of, link_of};
use addr::{GuestPhysical, Hfn};
use mtrr::MemoryType;

pub use capabilities::{EptCapabilities, EptUnsupported, Eptp, ExecuteOnly};

/// Extended page tables.
#[derive(Debug)]
pub enum Ept {}

/// What a guest may do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptRights {
    /// What loads and stores may do.
    pub data: EptData,
    /// Code may be fetched through supervisor addresses: those that some level of the guest's own
    /// tables keeps from CPL 3. Without the VM-execution control "mode-based execute control for
    /// EPT" the CPU takes this for all fetches.
    pub supervisor_execute: bool,
    /// Code may be fetched through user addresses: all others, and every address while the guest's
    /// paging is off. It is the address that counts, not the CPL: only SMEP keeps CPL 0 from user
    /// addresses. Ignored without "mode-based execute control for EPT".
    pub user_execute: bool,
    /// Caching, before the guest's PAT is taken into account (section 29.3.7.2).
    pub memory_type: MemoryType,
}

/// What loads and stores may do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EptData {
    /// Nothing, and nor may fetches: the entry is not present, but remembers its frame and the
    /// other rights, and the page still counts as mapped.
    Hidden,
    /// Nothing; but fetches may do what the rights say.
    ExecuteOnly(ExecuteOnly),
    /// Loads.
    Read,
    /// Loads and stores.
    ReadWrite,
}

impl EptRights {
    /// Mapped, but out of reach.
    pub const NONE: Self = Self {
        data: EptData::Hidden,
        supervisor_execute: false,
        user_execute: false,
        memory_type: MemoryType::WriteBack,
    };
    /// Read only.
    pub const READ: Self = Self { data: EptData::Read, ..Self::NONE };
    /// Data.
    pub const READ_WRITE: Self = Self { data: EptData::ReadWrite, ..Self::NONE };
    /// Everything.
    pub const ALL: Self = Self { supervisor_execute: true, user_execute: true, ..Self::READ_WRITE };
}

// Bits of an entry (section 29.3.2). Memory type and "ignore PAT" (bit 6, always 0 here) are
// reserved in a link to a table.
const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const SUPERVISOR_EXECUTE: u64 = 1 << 2;
const MEMORY_TYPE_SHIFT: u32 = 3;
const LARGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const USER_EXECUTE: u64 = 1 << 10;
const SUPPRESS_VE: u64 = 1 << 63;

// Bits that hardware leaves to software.
/// This entry is a leaf although it may not be present.
const LEAF: u64 = 1 << 11;
/// Supervisor execute of the rights, in force or only remembered.
const MEANS_SUPERVISOR: u64 = 1 << 52;
/// User execute of the rights, in force or only remembered.
const MEANS_USER: u64 = 1 << 53;
/// In a link: to a shared subtree.
const SHARED: u64 = 1 << 55;
/// [`EptData::ExecuteOnly`], even if nothing may be fetched.
const MEANS_EXECUTE_ONLY: u64 = 1 << 54;

const fn bit(on: bool, mask: u64) -> u64 {
    if on { mask } else { 0 }
}

/// Numbers that are reserved are never written.
fn memory_type_of(entry: u64) -> MemoryType {
    MemoryType::from_number(entry >> MEMORY_TYPE_SHIFT & 7).unwrap_or(MemoryType::Uncacheable)
}

impl EptData {
    const fn of(entry: u64) -> Self {
        if entry & MEANS_EXECUTE_ONLY != 0 {
            Self::ExecuteOnly(ExecuteOnly::REMEMBERED)
        } else if entry & WRITE != 0 {
            Self::ReadWrite
        } else if entry & READ != 0 {
            Self::Read
        } else {
            Self::Hidden
        }
    }

    const fn bits(self) -> u64 {
        match self {
            Self::Hidden => 0,
            Self::ExecuteOnly(_) => MEANS_EXECUTE_ONLY,
            Self::Read => READ,
            Self::ReadWrite => READ | WRITE,
        }
    }
}

impl Format for Ept {
    type Input = GuestPhysical;
    type Rights = EptRights;
    const SIGN_EXTENDED: bool = false;
    const SHARED: u64 = SHARED;
    const MAPPED: u64 = LEAF;

    /// Accessed and dirty are set from the start, so that the CPU never writes to the tables.
    fn flags(level: Level, rights: EptRights) -> u64 {
        let execute = bit(rights.supervisor_execute, SUPERVISOR_EXECUTE)
            | bit(rights.user_execute, USER_EXECUTE);
        LEAF | ACCESSED
            | DIRTY
            | SUPPRESS_VE
            | (rights.memory_type as u64) << MEMORY_TYPE_SHIFT
            | rights.data.bits()
            | bit(rights.data != EptData::Hidden, execute)
            | bit(rights.supervisor_execute, MEANS_SUPERVISOR)
            | bit(rights.user_execute, MEANS_USER)
            | bit(level != Level::Page4K, LARGE)
    }

    fn table(frame: Hfn) -> u64 {
        frame.start().raw()
            | READ
            | WRITE
            | SUPERVISOR_EXECUTE
            | USER_EXECUTE
            | ACCESSED
            | SUPPRESS_VE
    }

    fn decode(entry: u64, _level: Level) -> Entry<EptRights> {
        if entry & LEAF != 0 {
            let rights = EptRights {
                data: EptData::of(entry),
                supervisor_execute: entry & MEANS_SUPERVISOR != 0,
                user_execute: entry & MEANS_USER != 0,
                memory_type: memory_type_of(entry),
            };
            Entry::Leaf { frame: frame_of(entry), rights }
        } else if entry & READ != 0 {
            link_of::<Self>(entry)
        } else {
            Entry::Empty
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
