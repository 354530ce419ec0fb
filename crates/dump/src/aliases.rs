//! Mappings as they are listed: those that go on in one another are one.

use addr::{FrameRange, Gpa, GuestPhysical, Gva};
use alloc::vec::Vec;
use integrity::Rights;
use paging::Level;
use paging::guest::GuestLeaf;

/// A mapping, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias {
    /// First address.
    pub gva: Gva,
    /// First physical address.
    pub gpa: Gpa,
    /// Number of 4 KiB pages.
    pub pages: u64,
    /// Size of the leaves that make it.
    pub level: Level,
    /// What they allow the kernel.
    pub rights: Rights,
    /// Whether they are open to processes.
    pub user: bool,
}

/// What a leaf is.
pub fn alias_of(leaf: &GuestLeaf) -> Alias {
    let mut rights = Rights::READ;
    rights.set(Rights::WRITE, leaf.rights.write);
    rights.set(Rights::EXECUTE, leaf.rights.execute);
    let (gva, gpa, pages) = (leaf.gva, leaf.gpa, leaf.frames().count());
    Alias { gva, gpa, pages, level: leaf.level, rights, user: leaf.rights.user }
}

impl Alias {
    /// The frames that it leads to.
    pub fn frames(&self) -> FrameRange<GuestPhysical> {
        FrameRange::with_count(self.gpa.frame(), self.pages)
    }

    /// The part that leads to these frames, which it has.
    pub(crate) fn part(&self, frames: FrameRange<GuestPhysical>) -> Self {
        let inside = frames.start.start().raw() - self.gpa.raw();
        let gva = self.gva.plus(inside);
        Self { gva, gpa: frames.start.start(), pages: frames.count(), ..*self }
    }
}

/// Adds a mapping to a list that has a limit, joining it with the one before where that goes on
/// in it; whether the list had room.
pub fn join(list: &mut Vec<Alias>, alias: Alias, room: &mut usize) -> bool {
    if let Some(last) = list.last_mut() {
        let bytes = last.pages << addr::PAGE_SHIFT;
        let goes_on = last.gva.checked_add(bytes) == Some(alias.gva)
            && last.gpa.checked_add(bytes) == Some(alias.gpa);
        let alike = (last.level, last.rights, last.user) == (alias.level, alias.rights, alias.user);
        if goes_on && alike {
            last.pages += alias.pages;
            return true;
        }
    }
    let fits = *room > 0;
    if fits {
        list.push(alias);
        *room -= 1;
    }
    fits
}
