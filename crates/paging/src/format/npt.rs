//! AMD's second stage: long-mode tables that translate guest-physical addresses (AMD APM volume 2,
//! section 15.25). Needs EFER.NXE = 1 in the host.
//!
//! The nested walk counts as a user access (section 15.25.5), so every entry has the user bit. The
//! one exception needs GMET (guest mode execute trap, CPUID 8000_000A EDX bit 17), which is to
//! nested tables what SMEP is to a kernel's: supervisor code (CPL below 3) cannot execute where
//! the user bits of all levels are set, and reads and writes do not depend on them. *Supervisor alone*
//! cannot be expressed:
//!
//! | execution by | user bit | NX |
//! |---|---|---|
//! | nobody | 1 | 1 |
//! | user code alone; without GMET everybody | 1 | 0 |
//! | everybody; without GMET a leaf that allows nothing | 0 | 0 |
//!
//! So the user bit is clear in no other leaf than those that supervisor code executes.

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
    /// Who may execute.
    pub execute: NptExecute,
}

/// Who may execute what is in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NptExecute {
    /// Nobody.
    #[default]
    Nobody,
    /// A user page: with GMET user code alone, without it everybody.
    UserPage,
    /// A supervisor page: everybody. Only with GMET; without it, such a leaf allows nothing.
    SupervisorPage,
}

impl NptExecute {
    /// With GMET. Supervisor code alone becomes everybody: what the user bit can do is to keep
    /// supervisor code out, not user code.
    pub const fn with_gmet(supervisor: bool, user: bool) -> Self {
        match (supervisor, user) {
            (true, _) => Self::SupervisorPage,
            (false, true) => Self::UserPage,
            (false, false) => Self::Nobody,
        }
    }

    /// Without GMET, where there is no telling apart.
    pub const fn without_gmet(everybody: bool) -> Self {
        if everybody { Self::UserPage } else { Self::Nobody }
    }

    /// Whether supervisor code may execute.
    pub const fn allows_supervisor(self, gmet: bool) -> bool {
        match self {
            Self::Nobody => false,
            Self::UserPage => !gmet,
            Self::SupervisorPage => gmet,
        }
    }
}

impl NptRights {
    /// Mapped, but out of reach.
    pub const NONE: Self = Self { read: false, write: false, execute: NptExecute::Nobody };
    /// Read only.
    pub const READ: Self = Self { read: true, ..Self::NONE };
    /// Data.
    pub const READ_WRITE: Self = Self { write: true, ..Self::READ };
    /// Code; with GMET, of user programs.
    pub const READ_EXECUTE: Self = Self { execute: NptExecute::UserPage, ..Self::READ };
    /// Everything; with GMET, only to user programs.
    pub const ALL: Self = Self { execute: NptExecute::UserPage, ..Self::READ_WRITE };
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
    const MAPPED: u64 = LEAF;

    /// Accessed and dirty are set from the start, so that the CPU never writes to the tables.
    fn flags(level: Level, rights: NptRights) -> u64 {
        LEAF | bit(rights.execute != NptExecute::SupervisorPage, USER)
            | ACCESSED
            | DIRTY
            | bit(rights.read, PRESENT)
            | bit(rights.write, WRITE)
            | bit(level != Level::Page4K, LARGE)
            | bit(rights.execute == NptExecute::Nobody, NO_EXECUTE)
    }

    fn table(frame: Hfn) -> u64 {
        frame.start().raw() | PRESENT | WRITE | USER | ACCESSED
    }

    fn decode(entry: u64, _level: Level) -> Entry<NptRights> {
        if entry & LEAF != 0 {
            let rights = NptRights {
                read: entry & PRESENT != 0,
                write: entry & WRITE != 0,
                execute: match (entry & NO_EXECUTE != 0, entry & USER != 0) {
                    (true, _) => NptExecute::Nobody,
                    (false, true) => NptExecute::UserPage,
                    (false, false) => NptExecute::SupervisorPage,
                },
            };
            Entry::Leaf { frame: frame_of(entry), rights }
        } else if entry & PRESENT != 0 {
            link_of::<Self>(entry)
        } else {
            Entry::Empty
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
