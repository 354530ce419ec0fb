//! The way of one address through the guest's tables.

use super::{GuestRights, Step, canonical, index, step};
use crate::Level;
use addr::{Gpa, Gva};

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address of the byte.
    pub gpa: Gpa,
    /// Size of the leaf.
    pub level: Level,
    /// What all levels together allow.
    pub rights: GuestRights,
    /// Where the leaf's entry is stored.
    pub entry: Gpa,
}

/// Why an address leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// The number of levels is neither 4 nor 5.
    #[error("a guest has 4 or 5 levels of page tables, not {0}")]
    Levels(u8),
    /// The upper bits of the address do not repeat its highest translated bit.
    #[error("the address is not canonical")]
    NotCanonical,
    /// An entry is not present or not valid.
    #[error("the entry of level {level} at {entry:?} is not present")]
    NotPresent {
        /// Level of the entry, 1 to 5.
        level: u8,
        /// Where it is stored.
        entry: Gpa,
    },
    /// The reader refused an entry, as when it lies outside guest memory.
    #[error("the entry of level {level} at {entry:?} cannot be read")]
    Unreadable {
        /// Level of the entry, 1 to 5.
        level: u8,
        /// Where it should be stored.
        entry: Gpa,
    },
}

/// Translates `gva` by the tables under `root` (the address in CR3; its low 12 bits are ignored).
/// `read` gets the 8-byte-aligned addresses of at most five entries, each once.
///
/// # Errors
/// See [`WalkError`].
pub fn walk(
    root: Gpa,
    levels: u8,
    gva: Gva,
    mut read: impl FnMut(Gpa) -> Option<u64>,
) -> Result<Translation, WalkError> {
    if !matches!(levels, 4 | 5) {
        return Err(WalkError::Levels(levels));
    }
    if canonical(gva.raw(), levels) != gva {
        return Err(WalkError::NotCanonical);
    }
    let mut table = Gpa::new(root.raw() & crate::format::ADDRESS);
    let mut rights = GuestRights::ALL;
    for level in (1..=levels).rev() {
        let at = table.plus(8 * index(gva.raw(), level) as u64);
        let entry = read(at).ok_or(WalkError::Unreadable { level, entry: at })?;
        rights = rights.and(entry);
        match step(entry, level) {
            Step::NotPresent => return Err(WalkError::NotPresent { level, entry: at }),
            Step::Table(next) => table = next,
            Step::Leaf(base, size) => {
                let gpa = base.plus(gva.raw() & ((1 << size.shift()) - 1));
                return Ok(Translation { gpa, level: size, rights, entry: at });
            }
        }
    }
    // An entry of level 1 is a leaf or absent.
    Err(WalkError::NotPresent { level: 1, entry: table })
}
