//! Frames that processes have mapped.
//!
//! No structure of the kernel is read for that, as each version has its own. Every process's root
//! table repeats the kernel half of the kernel's own root, so a search of all frames for that half
//! finds them; what a table that was freed a moment ago still says is found as well.

use crate::root::Root;
use crate::{Dump, Source};
use addr::{Frame, Gpa, PAGE_BYTES, PAGE_SHIFT};
use alloc::vec;
use alloc::vec::Vec;
use paging::ENTRIES;
use paging::guest::{Buffers, GuestLeaf, visit_user_half};

/// Most roots that are followed.
const MOST_ROOTS: usize = 1 << 16;
/// Bytes read at a time.
const CHUNK: usize = 1 << 20;
/// What tells two entries apart: present, and the address. The CPU sets bits of its own.
const SAME: u64 = 0x000f_ffff_ffff_f001;
/// Entries of its own that a process may have in the kernel half: its LDT, with isolated tables.
const MOST_OWN: usize = 1;

/// What the search found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// Root tables of processes.
    pub roots: usize,
    /// Their page tables, a table once for every way that leads to it.
    pub tables: u64,
    /// Whether there were too many roots or tables to follow them all.
    pub cut_off: bool,
    /// Frames that could not be read.
    pub unreadable: u64,
}

impl<S: Source> Dump<S> {
    /// Calls `f` for every leaf that a process can use. `progress` gets the number of bytes
    /// searched so far.
    pub(crate) fn visit_users(
        &self,
        root: &Root,
        mut progress: impl FnMut(u64),
        mut f: impl FnMut(GuestLeaf),
    ) -> Users {
        let mut users = Users::default();
        let mut own = [0; ENTRIES];
        let Some(()) = self.read_table(root.table, &mut own) else { return users };
        let roots = self.search(&own, &mut users, &mut progress);
        users.roots = roots.len();
        let mut buffers: Buffers = [[0; ENTRIES]; 5];
        let mut budget = self.table_budget();
        for root_table in roots {
            let read = |at, entries: &mut _| self.read_table(at, entries).is_some();
            let user = |leaf: GuestLeaf| {
                if leaf.rights.user {
                    f(leaf)
                }
            };
            match visit_user_half(root_table, root.levels, budget, &mut buffers, read, user) {
                Ok(visited) => {
                    users.tables += visited.tables;
                    budget -= visited.tables;
                }
                Err(_) => {
                    users.cut_off = true;
                    break;
                }
            }
        }
        users
    }

    fn search(
        &self,
        own: &[u64; ENTRIES],
        users: &mut Users,
        progress: &mut impl FnMut(u64),
    ) -> Vec<Gpa> {
        let mut roots = Vec::new();
        let Some(pattern) = Pattern::of(own) else { return roots };
        let mut buffer = vec![0; CHUNK];
        let mut done = 0;
        for piece in self.memory.pieces() {
            let mut frame = piece.frames.start;
            let mut offset = piece.offset;
            while frame < piece.frames.end {
                let left = (piece.frames.end.raw() - frame.raw()) << PAGE_SHIFT;
                let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                let Some(bytes) = buffer.get_mut(..length) else { return roots };
                let count = (length >> PAGE_SHIFT) as u64;
                if self.source.read_at(offset, bytes).is_none() {
                    users.unreadable += count;
                    bytes.fill(0);
                }
                for (number, page) in (0..).zip(bytes.as_chunks().0) {
                    if !pattern.matches(page) {
                        continue;
                    }
                    if roots.len() == MOST_ROOTS {
                        users.cut_off = true;
                        return roots;
                    }
                    roots.push(Frame::plus(frame, number).start());
                }
                frame = frame.plus(count);
                offset += length as u64;
                done += length as u64;
                progress(done);
            }
        }
        roots
    }
}

/// The kernel half of a root table.
struct Pattern<'a> {
    own: &'a [u64; ENTRIES],
    /// The last present entry, where few pages have the same.
    probe: usize,
}

impl<'a> Pattern<'a> {
    fn of(own: &'a [u64; ENTRIES]) -> Option<Self> {
        let probe = (ENTRIES / 2..ENTRIES).rev().find(|index| own[*index] & 1 != 0)?;
        Some(Self { own, probe })
    }

    fn matches(&self, page: &[u8; PAGE_BYTES]) -> bool {
        let (entries, _) = page.as_chunks();
        let entry = |index: usize| entries.get(index).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if (entry(self.probe) ^ self.own[self.probe]) & SAME != 0 {
            return false;
        }
        let mut more = 0;
        for (index, own) in self.own.iter().enumerate().skip(ENTRIES / 2) {
            let entry = entry(index);
            match (entry & 1 != 0, own & 1 != 0) {
                (true, true) if (entry ^ own) & SAME != 0 => return false,
                (true, false) => more += 1,
                // The kernel adds entries of its own later where they are missed.
                _ => {}
            }
        }
        more <= MOST_OWN
    }
}
