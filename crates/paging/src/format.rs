//! Entry formats: how a leaf or a link to a table is written down in 64 bits, and read back.
//!
//! A format knows nothing of tables; it turns values into entries and entries into values.
//! Reading back ignores what hardware itself sets in an entry (accessed, dirty).

mod ept;
mod npt;
mod x86_64;

use addr::{Hfn, Space};
use core::fmt::Debug;

pub use ept::{Ept, EptCapabilities, EptData, EptRights, EptUnsupported, Eptp, ExecuteOnly};
pub use npt::{Npt, NptExecute, NptRights};
pub use x86_64::{HostRights, X86_64};

/// Bits 12 to 51: the physical address in an entry of every format.
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What a table's entries span: a table of level `Page4K` has entries of 4 KiB each.
/// Leaves exist at the lowest three levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// 4 KiB per entry; always leaves.
    Page4K = 1,
    /// 2 MiB per entry.
    Page2M = 2,
    /// 1 GiB per entry.
    Page1G = 3,
    /// 512 GiB per entry; never leaves. The level of the root.
    Top = 4,
}

impl Level {
    /// log2 of the 4 KiB frames that an entry spans: 0, 9, 18 or 27.
    pub const fn frame_shift(self) -> u32 {
        9 * (self as u32 - 1)
    }
    /// log2 of the bytes that an entry spans: 12, 21, 30 or 39.
    pub const fn shift(self) -> u32 {
        addr::PAGE_SHIFT + self.frame_shift()
    }
    /// 4 KiB frames that an entry spans.
    pub const fn frames(self) -> u64 {
        1 << self.frame_shift()
    }
    /// Level of the tables that entries of this level link to.
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::Top => Some(Self::Page1G),
            Self::Page1G => Some(Self::Page2M),
            Self::Page2M => Some(Self::Page4K),
            Self::Page4K => None,
        }
    }
    /// Level of the tables with entries that link to tables of this level.
    pub const fn above(self) -> Option<Self> {
        match self {
            Self::Top => None,
            Self::Page1G => Some(Self::Top),
            Self::Page2M => Some(Self::Page1G),
            Self::Page4K => Some(Self::Page2M),
        }
    }
    /// Number of levels below this one, 0 to 3.
    pub(crate) const fn depth(self) -> usize {
        self as usize - 1
    }
    /// Index in a table of this level of the entry for a page, 0 to 511.
    pub const fn index(self, page: u64) -> usize {
        (page >> self.frame_shift() & crate::INDEX_MASK) as usize
    }
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<R> {
    /// Nothing is mapped here.
    Empty,
    /// The translation goes on in this table, one level below.
    Table(Hfn),
    /// As `Table`, but the table is the root of a subtree that several tables share: what lies
    /// there is changed through its owner only.
    Shared(Hfn),
    /// The translation ends here.
    Leaf {
        /// First frame of the leaf, a multiple of the level's frames.
        frame: Hfn,
        /// Rights of all its pages.
        rights: R,
    },
}

/// A format of four-level tables of 512 entries with 48 bits of input.
///
/// An implementation upholds: `decode(leaf(f, l, r), l)` is the leaf again, `decode(table(t), l)`
/// the table and `decode(shared(t), l)` the shared one, whatever hardware does to accessed and
/// dirty bits in between; entry 0 is `Empty`; at `Page4K` there is no table and at `Top` no leaf.
pub trait Format: 'static {
    /// The space that is translated; the result is always host-physical.
    type Input: Space;
    /// What a leaf allows.
    type Rights: Copy + Eq + Debug;
    /// Whether bit 47 of an input address is repeated above it (canonical addresses).
    const SIGN_EXTENDED: bool;
    /// A bit of a link that hardware ignores and [`Format::table`] leaves clear: it marks shared
    /// subtrees.
    const SHARED: u64;
    /// The bit that is set in the leaves of the lowest tables, and clear in what is `Empty` there.
    const MAPPED: u64;

    /// The entry of a leaf, but for its frame. `level` is at most `Page1G`.
    fn flags(level: Level, rights: Self::Rights) -> u64;
    /// The entry of a leaf. `frame` is a multiple of `level.frames()` below 2^40, and `level` is
    /// at most `Page1G`.
    fn leaf(frame: Hfn, level: Level, rights: Self::Rights) -> u64 {
        frame.start().raw() | Self::flags(level, rights)
    }
    /// The entry that links to a table. It takes no right away: leaves alone decide.
    fn table(frame: Hfn) -> u64;
    /// The entry that links to a shared subtree.
    fn shared(frame: Hfn) -> u64 {
        Self::table(frame) | Self::SHARED
    }
    /// What an entry of a table of level `level` says.
    fn decode(entry: u64, level: Level) -> Entry<Self::Rights>;
}

/// The frame that an entry names.
pub(crate) const fn frame_of(entry: u64) -> Hfn {
    Hfn::new((entry & ADDRESS) >> addr::PAGE_SHIFT)
}

/// A link to a table, shared or not.
pub(crate) fn link_of<F: Format>(entry: u64) -> Entry<F::Rights> {
    let table = frame_of(entry);
    if entry & F::SHARED != 0 { Entry::Shared(table) } else { Entry::Table(table) }
}

/// Bits that the AMD64 formats share (APM volume 2, section 5.3.3 and 5.4).
pub(crate) mod bits {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const WRITE_THROUGH: u64 = 1 << 3;
    pub const CACHE_DISABLE: u64 = 1 << 4;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    /// Left to software.
    pub const SHARED: u64 = 1 << 10;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub use super::ept::tests::all_rights as all_ept_rights;
    pub use super::npt::tests::all_rights as all_npt_rights;

    const LEAF_LEVELS: [Level; 3] = [Level::Page4K, Level::Page2M, Level::Page1G];
    const AMD64_FLAGS: [u64; 2] = [bits::ACCESSED, bits::DIRTY];

    /// Whichever of its flags, accessed and dirty, hardware has set.
    fn entries_read_back<F: Format>(raw: u64, rights: F::Rights, [accessed, dirty]: [u64; 2]) {
        for flags in [0, accessed, dirty, accessed | dirty] {
            let set = |entry: u64| entry & !(accessed | dirty) | flags;
            for level in LEAF_LEVELS {
                let frame = Hfn::new(raw & !(level.frames() - 1));
                let entry = set(F::leaf(frame, level, rights));
                assert_eq!(F::decode(entry, level), Entry::Leaf { frame, rights });
            }
        }
        for flags in [0, accessed] {
            for level in [Level::Page2M, Level::Page1G, Level::Top] {
                let entry = F::table(Hfn::new(raw)) & !accessed | flags;
                assert_eq!(F::decode(entry, level), Entry::Table(Hfn::new(raw)));
                let entry = F::shared(Hfn::new(raw)) & !accessed | flags;
                assert_eq!(F::decode(entry, level), Entry::Shared(Hfn::new(raw)));
            }
        }
        for level in [Level::Page4K, Level::Page2M, Level::Page1G, Level::Top] {
            assert_eq!(F::decode(0, level), Entry::Empty);
        }
        assert_eq!(F::leaf(Hfn::new(raw), Level::Page4K, rights) & F::MAPPED, F::MAPPED);
        assert_eq!(F::MAPPED.count_ones(), 1);
    }

    proptest! {
        #[test]
        fn x86_64_entries_read_back(raw in 0_u64..1 << 40, rights in any::<[bool; 4]>()) {
            let [write, execute, user, uncached] = rights;
            let rights = HostRights { write, execute, user, uncached };
            entries_read_back::<X86_64>(raw, rights, AMD64_FLAGS);
        }

        #[test]
        fn npt_entries_read_back(raw in 0_u64..1 << 40) {
            for rights in all_npt_rights() {
                entries_read_back::<Npt>(raw, rights, AMD64_FLAGS);
            }
        }

        #[test]
        fn ept_entries_read_back(raw in 0_u64..1 << 40) {
            for rights in all_ept_rights() {
                entries_read_back::<Ept>(raw, rights, [1 << 8, 1 << 9]);
            }
        }
    }
}
