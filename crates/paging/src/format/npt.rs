//! AMD's second stage: long-mode tables that translate guest-physical addresses (AMD APM volume 2,
//! section 15.25). Needs EFER.NXE = 1 in the host.
//!
//! The nested walk counts as a user access (section 15.25.5), so every entry has the user bit.

use super::bits::{ACCESSED, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITE};
use super::{Entry, Format, Level, frame_of, link_of};
use addr::{GuestPhysical, Hfn};

/// Nested page tables.
#[derive(Debug)]
pub enum Npt {}

/// What a guest may do with a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NptRights {
    /// May be read. Without it nothing else is possible either: the entry is not present, but
    /// remembers its frame and the other rights, and the page still counts as mapped.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
}

impl NptRights {
    /// Mapped, but out of reach.
    pub const NONE: Self = Self { read: false, write: false, execute: false };
    /// Read only.
    pub const READ: Self = Self { read: true, ..Self::NONE };
    /// Data.
    pub const READ_WRITE: Self = Self { write: true, ..Self::READ };
    /// Code.
    pub const READ_EXECUTE: Self = Self { execute: true, ..Self::READ };
    /// Everything.
    pub const ALL: Self = Self { read: true, write: true, execute: true };
}

/// Bit 9, which hardware leaves to software: this entry is a leaf although it may not be present.
const LEAF: u64 = 1 << 9;

const fn bit(on: bool, mask: u64) -> u64 {
    if on { mask } else { 0 }
}

impl Format for Npt {
    type Input = GuestPhysical;
    type Rights = NptRights;
    const SIGN_EXTENDED: bool = false;
    const SHARED: u64 = super::bits::SHARED;

    /// Accessed and dirty are set from the start, so that the CPU never writes to the tables.
    fn flags(level: Level, rights: NptRights) -> u64 {
        LEAF | USER
            | ACCESSED
            | DIRTY
            | bit(rights.read, PRESENT)
            | bit(rights.write, WRITE)
            | bit(level != Level::Page4K, LARGE)
            | bit(!rights.execute, NO_EXECUTE)
    }

    fn table(frame: Hfn) -> u64 {
        frame.start().raw() | PRESENT | WRITE | USER | ACCESSED
    }

    fn decode(entry: u64, _level: Level) -> Entry<NptRights> {
        if entry & LEAF != 0 {
            let rights = NptRights {
                read: entry & PRESENT != 0,
                write: entry & WRITE != 0,
                execute: entry & NO_EXECUTE == 0,
            };
            Entry::Leaf { frame: frame_of(entry), rights }
        } else if entry & PRESENT != 0 {
            link_of::<Self>(entry)
        } else {
            Entry::Empty
        }
    }
}
