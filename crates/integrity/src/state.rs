//! The state of a guest page, and what the second stage allows on a page in each state.
//!
//! What always holds, in the kernel view: no page but a released one is both writable and
//! executable. A locked page leaves its state by release only, and the hypervisor's own memory,
//! published or not, never changes state. What a guest has withheld from a page ([`Page`]) only takes rights away.

use crate::Rights;

/// What a guest page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PageState {
    /// Data, the state of every guest page at start. The kernel may write, not execute it.
    Data = 0,
    /// Code that is not locked: boot code before its memory is freed, modules. A legitimate write
    /// makes it data again.
    Code = 1,
    /// Kernel text. Written only by the hypervisor, at patch sites.
    LockedCode = 2,
    /// Read-only data of the kernel.
    LockedReadOnly = 3,
    /// A violation on it was answered `log`: nothing is enforced any more.
    Released = 4,
    /// The hypervisor's memory: mapped for no guest.
    Own = 5,
    /// What the hypervisor lets the guest read (crate `published`).
    Published = 6,
}

/// Which second-stage table is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// In force while the guest runs its kernel.
    Kernel,
    /// In force while the guest runs user code.
    User,
    /// The only one, where user and supervisor execution are not told apart.
    Single,
}

impl PageState {
    /// Every state, by number.
    pub const ALL: [Self; 7] = [
        Self::Data,
        Self::Code,
        Self::LockedCode,
        Self::LockedReadOnly,
        Self::Released,
        Self::Own,
        Self::Published,
    ];

    /// The state with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u8 == number)
    }

    /// Whether the guest may never write the page by itself again.
    pub const fn is_locked(self) -> bool {
        matches!(self, Self::LockedCode | Self::LockedReadOnly)
    }

    /// Whether the change from `self` to `to` exists at all; staying is no change and is allowed.
    /// Who may ask for it, and when, is decided elsewhere.
    pub const fn may_become(self, to: Self) -> bool {
        use PageState::{Code, Data, LockedCode, LockedReadOnly, Own, Published, Released};
        match (self, to) {
            (Own, Own) | (Published, Published) => true,
            (Own | Published, _) | (_, Own | Published) => false,
            // Promotion, demotion, the lock. Code never turns into locked data directly, because
            // it might still be executed.
            (Data, Data | Code | LockedCode | LockedReadOnly | Released)
            | (Code, Data | Code | LockedCode | Released)
            | (LockedCode, LockedCode | Released)
            | (LockedReadOnly, LockedReadOnly | Released)
            | (Released, Released) => true,
            (Code, LockedReadOnly) | (LockedCode | LockedReadOnly | Released, _) => false,
        }
    }
}

impl TryFrom<u8> for PageState {
    type Error = ();
    fn try_from(number: u8) -> Result<Self, ()> {
        Self::from_number(number).ok_or(())
    }
}

/// What the second stage allows on a page in `state`.
pub const fn second_stage(state: PageState, view: View) -> Rights {
    const R: Rights = Rights::READ;
    const RW: Rights = R.union(Rights::WRITE);
    const RX: Rights = R.union(Rights::EXECUTE);
    const RWX: Rights = Rights::all();
    match (state, view) {
        (PageState::Own, _) => Rights::empty(),
        (PageState::Published, _) => R,
        (PageState::Released, _) => RWX,
        (PageState::Data, View::Kernel) => RW,
        (PageState::Data, View::User | View::Single) => RWX,
        // User code must leave the user view to run kernel code: the fault switches views.
        (PageState::Code | PageState::LockedCode, View::User) => R,
        (PageState::Code | PageState::LockedCode, View::Kernel | View::Single) => RX,
        (PageState::LockedReadOnly, View::Kernel) => R,
        // The vDSO, user code, lies in the kernel's read-only-after-init data.
        (PageState::LockedReadOnly, View::User | View::Single) => RX,
    }
}

/// A guest page: its state, and what the guest itself has asked to withhold. One byte, kept for
/// every guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Page {
    /// What Ravelin takes it for.
    pub state: PageState,
    /// Rights that a request has taken away: reading and writing from everybody, execution from the
    /// kernel.
    pub withheld: Rights,
    /// No request changes `withheld` again.
    pub immutable: bool,
}

const WITHHELD_SHIFT: u32 = 4;
const STATE_MASK: u8 = 0xf;
const IMMUTABLE: u8 = 1 << 7;

impl Page {
    /// A page of which no request has withheld anything.
    pub const fn new(state: PageState) -> Self {
        Self { state, withheld: Rights::empty(), immutable: false }
    }

    /// The same page in another state. One that is released is free of requests as well.
    #[must_use]
    pub fn with_state(self, state: PageState) -> Self {
        if state == PageState::Released { Self::new(state) } else { Self { state, ..self } }
    }

    /// What the second stage allows: what the state allows, less what is withheld.
    pub const fn allows(self, view: View) -> Rights {
        let withheld = match view {
            View::Kernel => self.withheld,
            // The guest asks for its kernel; where one table serves both it cannot.
            View::User | View::Single => self.withheld.difference(Rights::EXECUTE),
        };
        second_stage(self.state, view).difference(withheld)
    }

    /// Whether a request forbids this to the kernel.
    pub const fn withholds(self, right: Rights) -> bool {
        self.withheld.intersects(right)
    }
}

impl From<Page> for u8 {
    fn from(page: Page) -> Self {
        let immutable = if page.immutable { IMMUTABLE } else { 0 };
        page.state as Self | page.withheld.bits() << WITHHELD_SHIFT | immutable
    }
}

impl TryFrom<u8> for Page {
    type Error = ();
    fn try_from(byte: u8) -> Result<Self, ()> {
        Ok(Self {
            state: PageState::try_from(byte & STATE_MASK)?,
            withheld: Rights::from_bits_truncate((byte & !IMMUTABLE) >> WITHHELD_SHIFT),
            immutable: byte & IMMUTABLE != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    #[test]
    fn a_page_is_a_byte() {
        let mut pages = 0;
        for byte in 0..=u8::MAX {
            let page = Page::try_from(byte);
            assert_eq!(page.is_ok(), byte & 0xf < 7);
            if let Ok(page) = page {
                assert_eq!(u8::from(page), byte);
                pages += 1;
            }
        }
        assert_eq!(pages, 7 * 8 * 2);
    }

    #[test]
    fn what_is_withheld_is_not_allowed_and_nothing_else_changes() {
        for page in (0..=u8::MAX).filter_map(|byte| Page::try_from(byte).ok()) {
            for view in [View::Kernel, View::User, View::Single] {
                let full = second_stage(page.state, view);
                let taken = match view {
                    View::Kernel => page.withheld,
                    View::User | View::Single => page.withheld - Rights::EXECUTE,
                };
                assert_eq!(page.allows(view), full - taken);
            }
            assert_eq!(page.with_state(PageState::Released), Page::new(PageState::Released));
            assert_eq!(page.with_state(PageState::Code).withheld, page.withheld);
        }
    }

    fn text(rights: Rights) -> String {
        let letter = |right, letter| if rights.contains(right) { letter } else { '-' };
        [letter(Rights::READ, 'R'), letter(Rights::WRITE, 'W'), letter(Rights::EXECUTE, 'X')]
            .into_iter()
            .collect()
    }

    #[test]
    fn the_whole_table() {
        let table = [
            (PageState::Data, ["RW-", "RWX", "RWX"]),
            (PageState::Code, ["R-X", "R--", "R-X"]),
            (PageState::LockedCode, ["R-X", "R--", "R-X"]),
            (PageState::LockedReadOnly, ["R--", "R-X", "R-X"]),
            (PageState::Released, ["RWX", "RWX", "RWX"]),
            (PageState::Own, ["---", "---", "---"]),
            (PageState::Published, ["R--", "R--", "R--"]),
        ];
        assert_eq!(table.map(|(state, _)| state), PageState::ALL);
        for (state, expected) in table {
            let views = [View::Kernel, View::User, View::Single];
            assert_eq!(views.map(|view| text(second_stage(state, view))), expected, "{state:?}");
        }
    }

    #[test]
    fn the_kernel_writes_and_executes_no_page_unless_it_was_released() {
        for state in PageState::ALL {
            let rights = second_stage(state, View::Kernel);
            let both = rights.contains(Rights::WRITE | Rights::EXECUTE);
            assert_eq!(both, state == PageState::Released);
        }
    }

    #[test]
    fn locked_pages_are_writable_in_no_view() {
        for state in PageState::ALL.into_iter().filter(|state| state.is_locked()) {
            for view in [View::Kernel, View::User, View::Single] {
                assert!(!second_stage(state, view).contains(Rights::WRITE));
            }
        }
    }

    #[test]
    fn the_whole_relation() {
        // Rows: from; columns: to; both in the order of `ALL`.
        let relation =
            ["yyyyy--", "yyy-y--", "--y-y--", "---yy--", "----y--", "-----y-", "------y"];
        for (from, row) in PageState::ALL.into_iter().zip(relation) {
            for (to, cell) in PageState::ALL.into_iter().zip(row.chars()) {
                assert_eq!(from.may_become(to), cell == 'y', "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn numbers_name_states() {
        for number in 0..=u8::MAX {
            let state = PageState::from_number(number);
            assert_eq!(state.map(|state| state as u8), (number < 7).then_some(number));
        }
    }
}
