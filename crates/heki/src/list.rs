//! The list of pages of hypercall 14: copied out of the guest, then checked.
//!
//! Each byte is read once, so what is judged later is what was copied, whatever the guest does to
//! its list meanwhile. The list may lie anywhere in the guest's RAM, across pages too.

use crate::Refusal;
use addr::{FrameRange, Gpa, GuestPhysical, PAGE_SIZE};
use core::ops::Range;
use integrity::Rights;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Most pages of a list; the RFC has no limit.
pub const MOST_PAGES: usize = 32;
/// Entries that fit in a page of a list behind its header.
pub const ENTRIES_PER_PAGE: usize = (4096 - size_of::<Header>()) / size_of::<Entry>();
/// Most entries of a list.
pub const MOST_ENTRIES: usize = MOST_PAGES * ENTRIES_PER_PAGE;

/// Permission bit: read.
pub const READ: u64 = 1 << 0;
/// Permission bit: write.
pub const WRITE: u64 = 1 << 1;
/// Permission bit: execution by the kernel.
pub const EXEC: u64 = 1 << 2;
/// Permission bit: no request changes the pages again.
pub const IMMUTABLE: u64 = 1 << 3;

/// `struct heki_page_list` up to its entries.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    /// For the guest's use.
    next: u64,
    /// Address of the next page of the list; 0 at the end.
    next_pa: u64,
    /// Number of entries that follow.
    npages: u64,
}

/// `struct heki_pages`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Entry {
    /// First byte.
    pub pa: u64,
    /// One past the last byte.
    pub epa: u64,
    /// [`READ`], [`WRITE`], [`EXEC`], [`IMMUTABLE`].
    pub permissions: u64,
}

/// An entry that makes sense by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The frames, at least one.
    pub frames: FrameRange<GuestPhysical>,
    /// What is to be allowed.
    pub rights: Rights,
    /// No request changes them again.
    pub immutable: bool,
}

impl Entry {
    /// What the entry asks for, whatever the machine can do.
    ///
    /// # Errors
    /// [`Refusal::Invalid`]: an address that is not a multiple of 4096, no or unknown permissions,
    /// an empty range.
    pub fn wanted(&self) -> Result<Wanted, Refusal> {
        let aligned = (self.pa | self.epa).is_multiple_of(PAGE_SIZE);
        let known = self.permissions & !(READ | WRITE | EXEC | IMMUTABLE) == 0;
        if !aligned || !known || self.permissions == 0 || self.epa <= self.pa {
            return Err(Refusal::Invalid);
        }
        let mut rights = Rights::empty();
        rights.set(Rights::READ, self.permissions & READ != 0);
        rights.set(Rights::WRITE, self.permissions & WRITE != 0);
        rights.set(Rights::EXECUTE, self.permissions & EXEC != 0);
        Ok(Wanted {
            frames: FrameRange::new(Gpa::new(self.pa).frame(), Gpa::new(self.epa).frame()),
            rights,
            immutable: self.permissions & IMMUTABLE != 0,
        })
    }
}

/// Room for the copy of a list.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Buffer {
    entries: [Entry; MOST_ENTRIES],
}

/// The entries of a list, in order of address; no two share a frame, and each makes sense by
/// itself.
pub struct List<'a> {
    entries: &'a [Entry],
}

impl Buffer {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self { entries: [Entry { pa: 0, epa: 0, permissions: 0 }; MOST_ENTRIES] }
    }

    /// Copies the list whose first page is at `first` (0: an empty list) and checks it. `copy`
    /// fills its second argument with what is at its first, or answers `false` if not all of that
    /// is RAM of the guest.
    ///
    /// # Errors
    /// [`Refusal::Fault`]: `copy` failed. [`Refusal::TooBig`]: too many pages, or entries of a page.
    /// [`Refusal::Invalid`]: the list runs in a circle, or as for [`Entry::wanted`], or two entries
    /// share a frame.
    pub fn read(
        &mut self,
        first: Gpa,
        copy: impl FnMut(Gpa, &mut [u8]) -> bool,
    ) -> Result<List<'_>, Refusal> {
        let used = self.copy_all(first, copy)?;
        let entries = self.entries.get_mut(used).unwrap_or_default();
        for entry in &*entries {
            entry.wanted()?;
        }
        // Without overlaps the order means nothing.
        entries.sort_unstable_by_key(|entry| entry.pa);
        let mut pairs = entries.iter().zip(entries.iter().skip(1));
        if pairs.any(|(one, next)| one.epa > next.pa) {
            return Err(Refusal::Invalid);
        }
        Ok(List { entries })
    }

    /// Copies every page's entries to the front of the buffer; answers which were filled.
    fn copy_all(
        &mut self,
        first: Gpa,
        mut copy: impl FnMut(Gpa, &mut [u8]) -> bool,
    ) -> Result<Range<usize>, Refusal> {
        let mut visited = [0; MOST_PAGES];
        let mut at = first.raw();
        let mut used = 0;
        for number in 0..MOST_PAGES {
            if at == 0 {
                return Ok(0..used);
            }
            let mut header = Header::new_zeroed();
            if !copy(Gpa::new(at), header.as_mut_bytes()) {
                return Err(Refusal::Fault);
            }
            let count = usize::try_from(header.npages).unwrap_or(usize::MAX);
            if count > ENTRIES_PER_PAGE {
                return Err(Refusal::TooBig);
            }
            let place = self.entries.get_mut(used..used + count).ok_or(Refusal::TooBig)?;
            let start = Gpa::new(at).plus(size_of::<Header>() as u64);
            if count > 0 && !copy(start, place.as_mut_bytes()) {
                return Err(Refusal::Fault);
            }
            used += count;
            if let Some(slot) = visited.get_mut(number) {
                *slot = at;
            }
            at = header.next_pa;
            if at != 0 && visited.contains(&at) {
                return Err(Refusal::Invalid);
            }
        }
        if at == 0 { Ok(0..used) } else { Err(Refusal::TooBig) }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}

impl List<'_> {
    /// What the entries ask for, in order of address.
    pub fn wanted(&self) -> impl Iterator<Item = Wanted> {
        // All were checked, so none is left out.
        self.entries.iter().filter_map(|entry| entry.wanted().ok())
    }
}

#[cfg(test)]
mod tests;
