//! Reading the page tables that a guest builds for its own CPUs: long mode, 4 or 5 levels (AMD APM
//! volume 2, section 5.3; Intel SDM volume 3, section 5.5).
//!
//! The tables are hostile: they may change while they are read, and be linked in circles. So each
//! entry is read once, work is bounded, and nothing is believed but what the CPU would believe:
//! address bits 12 to 51 and P, W, U, PS, NX. EFER.NXE is taken for 1.

use crate::Level;
use crate::format::{ADDRESS, bits};
use addr::{Gpa, Gva};

#[cfg(test)]
mod tests;
mod visit;
mod walk;

pub use visit::{Buffers, GuestLeaf, VisitError, Visited, visit_kernel_half, visit_user_half};
pub use walk::{Translation, WalkError, walk};

/// What all levels together allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRights {
    /// Writable at every level.
    pub write: bool,
    /// Accessible to CPL 3 at every level.
    pub user: bool,
    /// NX clear at every level.
    pub execute: bool,
}

impl GuestRights {
    /// What remains before the first entry was read.
    const ALL: Self = Self { write: true, user: true, execute: true };

    const fn and(self, entry: u64) -> Self {
        Self {
            write: self.write && entry & bits::WRITE != 0,
            user: self.user && entry & bits::USER != 0,
            execute: self.execute && entry & bits::NO_EXECUTE == 0,
        }
    }
}

/// How an entry goes on.
enum Step {
    NotPresent,
    Table(Gpa),
    Leaf(Gpa, Level),
}

/// Reads an entry of a table of `level`, 1 to 5. A large leaf above 1 GiB is reserved: the CPU
/// refuses it like an absent entry.
const fn step(entry: u64, level: u8) -> Step {
    let leaf = match level {
        1 => Level::Page4K,
        2 if entry & bits::LARGE != 0 => Level::Page2M,
        3 if entry & bits::LARGE != 0 => Level::Page1G,
        _ if entry & bits::PRESENT != 0 && entry & bits::LARGE == 0 => {
            return Step::Table(Gpa::new(entry & ADDRESS));
        }
        _ => return Step::NotPresent,
    };
    if entry & bits::PRESENT == 0 {
        return Step::NotPresent;
    }
    Step::Leaf(Gpa::new(entry & ADDRESS & !((1 << leaf.shift()) - 1)), leaf)
}

/// Index in a table of `level` for an address.
const fn index(gva: u64, level: u8) -> usize {
    (gva >> shift(level) & crate::INDEX_MASK) as usize
}

/// log2 of the bytes that an entry at `level` spans.
const fn shift(level: u8) -> u32 {
    addr::PAGE_SHIFT + 9 * (level as u32 - 1)
}

/// The address with its highest translated bit repeated above it.
const fn canonical(gva: u64, levels: u8) -> Gva {
    let width = shift(levels + 1);
    let sign = 1 << (width - 1);
    let low = gva & ((1 << width) - 1);
    Gva::new((low ^ sign).wrapping_sub(sign))
}
