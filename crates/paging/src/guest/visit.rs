//! All leaves of one half of the guest's address space.

use super::{GuestRights, Step, canonical, shift, step};
use crate::format::{ADDRESS, bits};
use crate::{ENTRIES, LINE, Level};
use addr::{FrameRange, Gpa, GuestPhysical, Gva, PAGE_SHIFT, PAGE_SIZE};
use core::ops::Range;

/// Copies of the tables on the way from the root to the current leaf: 20 KiB, too much for a
/// hypervisor's stack.
pub type Buffers = [[u64; ENTRIES]; 5];

/// A present leaf, or several of one table that go on from one to the next in both spaces and allow
/// the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLeaf {
    /// First address, canonical.
    pub gva: Gva,
    /// Where it leads.
    pub gpa: Gpa,
    /// Size of each leaf; both addresses are multiples of it.
    pub level: Level,
    /// Number of leaves, 1 to 512.
    pub count: u64,
    /// What all levels together allow.
    pub rights: GuestRights,
}

impl GuestLeaf {
    /// What they map, all together.
    pub const fn frames(&self) -> FrameRange<GuestPhysical> {
        FrameRange::with_count(self.gpa.frame(), self.count << self.level.frame_shift())
    }

    /// The leaves, one by one.
    pub fn each(self) -> impl Iterator<Item = Self> {
        (0..self.count).map(move |number| {
            let bytes = number << self.level.shift();
            Self { gva: self.gva.plus(bytes), gpa: self.gpa.plus(bytes), count: 1, ..self }
        })
    }
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

/// Calls `f` for all present leaves in the upper half of the address space, from the leaf that
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

/// Visits the pages of a table of the last level, the first of which is at `first`.
fn pages(
    table: &[u64; ENTRIES],
    first: Gva,
    rights: GuestRights,
    start: Gva,
    f: &mut impl FnMut(GuestLeaf),
) {
    let before = start.raw().saturating_sub(first.raw()) >> PAGE_SHIFT;
    let mut rest = table.get(addr::length(before)..).unwrap_or_default();
    while let [entry, others @ ..] = rest {
        let index = (ENTRIES - rest.len()) as u64;
        if entry & bits::PRESENT == 0 {
            rest = others;
            continue;
        }
        let count = 1 + alike(*entry, others);
        let (gva, gpa) = (first.plus(index << PAGE_SHIFT), Gpa::new(entry & ADDRESS));
        let rights = rights.and(*entry);
        f(GuestLeaf { gva, gpa, level: Level::Page4K, count: count as u64, rights });
        rest = rest.get(count..).unwrap_or_default();
    }
}

/// How many of the entries that follow a leaf of 4 KiB go on from it, with the same rights.
fn alike(leaf: u64, entries: &[u64]) -> usize {
    const MEANS: u64 = ADDRESS | bits::PRESENT | bits::WRITE | bits::USER | bits::NO_EXECUTE;
    // An address that runs over into bit 52 is like none.
    let next = (leaf & MEANS) + PAGE_SIZE;
    let differs = |entry: u64, number: usize| entry & MEANS ^ (next + number as u64 * PAGE_SIZE);
    if entries.first().is_none_or(|entry| differs(*entry, 0) != 0) {
        return 0;
    }
    let (lines, _) = entries.as_chunks::<LINE>();
    let is_alike = |(line, first): &(&[u64; LINE], usize)| {
        line.iter().zip(*first..).fold(0, |any, (entry, n)| any | differs(*entry, n)) == 0
    };
    let whole = lines.iter().zip((0..).step_by(LINE)).take_while(is_alike).count() * LINE;
    let rest = entries.iter().enumerate().skip(whole);
    whole + rest.take_while(|(number, entry)| differs(**entry, *number) == 0).count()
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
    if !read(Gpa::new(root.raw() & ADDRESS), buffer)? {
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
            Step::Leaf(gpa, level) => f(GuestLeaf { gva, gpa, level, count: 1, rights }),
            Step::Table(table) => {
                let below = usize::from(depth) + 1;
                if !read(table, &mut buffers[below])? {
                    continue;
                }
                if level == 2 {
                    // Nearly all entries are in tables of the last level.
                    pages(&buffers[below], gva, rights, start, &mut f);
                } else {
                    cursors[below] = Cursor { next: 0, base, rights };
                    depth += 1;
                }
            }
        }
    }
}
