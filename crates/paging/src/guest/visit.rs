//! All leaves of one half of the guest's address space.

use super::{GuestRights, Step, canonical, shift, step};
use crate::format::bits;
use crate::{ENTRIES, Level};
use addr::{Gpa, Gva};
use core::ops::Range;

/// Copies of the tables on the way from the root to the current leaf: 20 KiB, too much for a
/// hypervisor's stack.
pub type Buffers = [[u64; ENTRIES]; 5];

/// A present leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLeaf {
    /// First address, canonical.
    pub gva: Gva,
    /// Where it leads.
    pub gpa: Gpa,
    /// Size of the leaf; both addresses are multiples of it.
    pub level: Level,
    /// What all levels together allow.
    pub rights: GuestRights,
}

/// What a visit came across.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visited {
    /// Table pages read, a page once for every way that leads to it.
    pub tables: u64,
    /// Links to tables that could not be read. What hangs below them was not visited.
    pub unreadable: u64,
}

/// Why a visit did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VisitError {
    /// The number of levels is neither 4 nor 5.
    #[error("a guest has 4 or 5 levels of page tables, not {0}")]
    Levels(u8),
    /// There are more tables than allowed, or they are linked in circles.
    #[error("more than {budget} guest page tables, or a circle of them: raise the limit")]
    Truncated {
        /// The number that was allowed.
        budget: u64,
    },
}

/// Where the visit stands in one table.
#[derive(Clone, Copy)]
struct Cursor {
    /// Next entry to look at.
    next: usize,
    /// First address that the table translates, before sign extension.
    base: u64,
    /// What the levels above allow.
    rights: GuestRights,
}

/// Calls `f` for every present leaf in the upper half of the address space, from the leaf that
/// holds `start` on (`Gva::new(0)`: all of them), in the order of addresses.
///
/// `read_table` copies one table page, whose address it gets, and answers whether it could. At
/// most `budget` pages are read, so tables that are linked in circles end too.
///
/// # Errors
/// See [`VisitError`]; leaves may have been visited by then.
pub fn visit_kernel_half(
    root: Gpa,
    levels: u8,
    start: Gva,
    budget: u64,
    buffers: &mut Buffers,
    read_table: impl FnMut(Gpa, &mut [u64; ENTRIES]) -> bool,
    f: impl FnMut(GuestLeaf),
) -> Result<Visited, VisitError> {
    visit(root, levels, (ENTRIES / 2..ENTRIES, start), budget, buffers, read_table, f)
}

/// As [`visit_kernel_half`], for the lower half of the address space, and all of it.
///
/// # Errors
/// See [`VisitError`]; leaves may have been visited by then.
pub fn visit_user_half(
    root: Gpa,
    levels: u8,
    budget: u64,
    buffers: &mut Buffers,
    read_table: impl FnMut(Gpa, &mut [u64; ENTRIES]) -> bool,
    f: impl FnMut(GuestLeaf),
) -> Result<Visited, VisitError> {
    visit(root, levels, (0..ENTRIES / 2, Gva::new(0)), budget, buffers, read_table, f)
}

/// Visits what these entries of the root lead to, from an address on.
fn visit(
    root: Gpa,
    levels: u8,
    (top, start): (Range<usize>, Gva),
    budget: u64,
    buffers: &mut Buffers,
    mut read_table: impl FnMut(Gpa, &mut [u64; ENTRIES]) -> bool,
    mut f: impl FnMut(GuestLeaf),
) -> Result<Visited, VisitError> {
    if !matches!(levels, 4 | 5) {
        return Err(VisitError::Levels(levels));
    }
    let mut visited = Visited::default();
    let mut read = |table: Gpa, buffer: &mut [u64; ENTRIES]| {
        if visited.tables == budget {
            return Err(VisitError::Truncated { budget });
        }
        visited.tables += 1;
        let readable = read_table(table, buffer);
        visited.unreadable += u64::from(!readable);
        Ok(readable)
    };

    let [buffer, ..] = buffers;
    if !read(Gpa::new(root.raw() & crate::format::ADDRESS), buffer)? {
        return Ok(visited);
    }
    let first = Cursor { next: top.start, base: 0, rights: GuestRights::ALL };
    let mut cursors = [first; 5];
    let mut depth = 0_u8;
    loop {
        let level = levels - depth;
        let cursor = &mut cursors[usize::from(depth)];
        let end = if depth == 0 { top.end } else { ENTRIES };
        let mut rest = buffers[usize::from(depth)][..end].iter().enumerate().skip(cursor.next);
        let Some((index, &entry)) = rest.find(|(_, entry)| *entry & bits::PRESENT != 0) else {
            if depth == 0 {
                return Ok(visited);
            }
            depth -= 1;
            continue;
        };
        let base = cursor.base + ((index as u64) << shift(level));
        let rights = cursor.rights.and(entry);
        cursor.next = index + 1;

        let gva = canonical(base, levels);
        let last = gva.plus((1 << shift(level)) - 1);
        if last < start {
            continue;
        }
        match step(entry, level) {
            Step::NotPresent => {}
            Step::Leaf(gpa, level) => f(GuestLeaf { gva, gpa, level, rights }),
            Step::Table(table) => {
                let below = usize::from(depth) + 1;
                if read(table, &mut buffers[below])? {
                    cursors[below] = Cursor { next: 0, base, rights };
                    depth += 1;
                }
            }
        }
    }
}
