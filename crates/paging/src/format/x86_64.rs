//! The CPU's own long-mode tables, for the hypervisor's address spaces (AMD APM volume 2,
//! section 5.3; Intel SDM volume 3, section 5.5). Needs EFER.NXE = 1.

use super::bits::{
    ACCESSED, CACHE_DISABLE, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITE, WRITE_THROUGH,
};
use super::{Entry, Format, Level, frame_of, link_of};
use addr::{Hfn, HostVirtual};

/// Long-mode page tables.
#[derive(Debug)]
pub enum X86_64 {}

/// What the hypervisor, or a task of it, may do with a page; reading is always allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostRights {
    /// May be written (needs CR0.WP = 1 to hold for the supervisor).
    pub write: bool,
    /// May be executed.
    pub execute: bool,
    /// May be used at CPL 3.
    pub user: bool,
    /// Device memory: PCD and PWT set, the strong uncacheable type of the reset PAT.
    pub uncached: bool,
}

impl HostRights {
    /// Supervisor data that is only read.
    pub const READ: Self = Self { write: false, execute: false, user: false, uncached: false };
    /// Supervisor data.
    pub const READ_WRITE: Self = Self { write: true, ..Self::READ };
    /// Supervisor code.
    pub const READ_EXECUTE: Self = Self { execute: true, ..Self::READ };
    /// Device registers.
    pub const DEVICE: Self = Self { write: true, uncached: true, ..Self::READ };
}

const fn bit(on: bool, mask: u64) -> u64 {
    if on { mask } else { 0 }
}

impl Format for X86_64 {
    type Input = HostVirtual;
    type Rights = HostRights;
    const SIGN_EXTENDED: bool = true;
    const SHARED: u64 = super::bits::SHARED;
    const MAPPED: u64 = PRESENT;

    /// Accessed and dirty are set from the start, so that the CPU never writes to the tables.
    fn flags(level: Level, rights: HostRights) -> u64 {
        PRESENT
            | ACCESSED
            | DIRTY
            | bit(rights.write, WRITE)
            | bit(rights.user, USER)
            | bit(rights.uncached, WRITE_THROUGH | CACHE_DISABLE)
            | bit(level != Level::Page4K, LARGE)
            | bit(!rights.execute, NO_EXECUTE)
    }

    fn table(frame: Hfn) -> u64 {
        frame.start().raw() | PRESENT | WRITE | USER | ACCESSED
    }

    fn decode(entry: u64, level: Level) -> Entry<HostRights> {
        let large = entry & LARGE != 0 && level != Level::Top;
        if entry & PRESENT == 0 {
            Entry::Empty
        } else if level == Level::Page4K || large {
            let rights = HostRights {
                write: entry & WRITE != 0,
                execute: entry & NO_EXECUTE == 0,
                user: entry & USER != 0,
                uncached: entry & CACHE_DISABLE != 0,
            };
            Entry::Leaf { frame: frame_of(entry), rights }
        } else {
            link_of::<Self>(entry)
        }
    }
}
