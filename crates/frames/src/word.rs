//! The state word of a frame: who owns it, and how many windows are open on it; 4 bytes.

/// Who owns a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// The hypervisor. Its frames, and no others, are in the direct map.
    Hv,
    /// A task, by number, below 2^24.
    Task(u32),
    /// A virtual machine, by number, below 2^24.
    Vm(u32),
    /// A secret of a task, by handle number, below 2^24. No window opens on it.
    Secret(u32),
    /// A device, as a buffer of its own.
    Device,
}

/// The state of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameState {
    /// Ready for any owner: zeroed, or in a block that nobody has used yet and that is zeroed first.
    Free,
    /// Freed, but CPUs may still hold translations of its last owner's.
    Quarantined,
    /// Owned.
    Owned(Owner),
}

/// Bits of an owner's number, of a link and of the number of a frame in its pool.
const NUMBER_BITS: u32 = 24;
/// One past the largest number.
pub(crate) const NUMBERS: u32 = 1 << NUMBER_BITS;

const KIND_BITS: u32 = 3;
const KIND_MASK: u32 = (1 << KIND_BITS) - 1;
const WINDOW_BITS: u32 = 5;
/// Most windows on one frame.
pub(crate) const MOST_WINDOWS: u32 = (1 << WINDOW_BITS) - 1;
const NUMBER_SHIFT: u32 = KIND_BITS + WINDOW_BITS;

const FREE: u32 = 0;
const QUARANTINED: u32 = 1;
const HV: u32 = 2;
const TASK: u32 = 3;
const VM: u32 = 4;
const SECRET: u32 = 5;
const DEVICE: u32 = 6;

/// The word. Bits 0 to 2 say what the frame is, bits 3 to 7 count windows, and bits 8 to 31 are
/// the owner's number, or the next frame in the list of free or quarantined frames plus 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Word(u32);

impl Word {
    const fn new(kind: u32, number: u32) -> Self {
        Self(kind | number << NUMBER_SHIFT)
    }

    /// A free frame; `next` in the list.
    pub(crate) fn free(next: Option<u32>) -> Self {
        Self::new(FREE, next.map_or(0, |next| next + 1))
    }

    /// A frame in quarantine; `next` in the list.
    pub(crate) fn quarantined(next: Option<u32>) -> Self {
        Self::new(QUARANTINED, next.map_or(0, |next| next + 1))
    }

    /// A frame without windows.
    pub(crate) const fn owned(owner: Owner) -> Self {
        match owner {
            Owner::Hv => Self::new(HV, 0),
            Owner::Task(id) => Self::new(TASK, id),
            Owner::Vm(id) => Self::new(VM, id),
            Owner::Secret(id) => Self::new(SECRET, id),
            Owner::Device => Self::new(DEVICE, 0),
        }
    }

    /// What it says.
    pub(crate) const fn state(self) -> FrameState {
        let number = self.0 >> NUMBER_SHIFT;
        FrameState::Owned(match self.0 & KIND_MASK {
            FREE => return FrameState::Free,
            QUARANTINED => return FrameState::Quarantined,
            HV => Owner::Hv,
            TASK => Owner::Task(number),
            VM => Owner::Vm(number),
            SECRET => Owner::Secret(number),
            _ => Owner::Device,
        })
    }

    /// The next frame in the list of a free or quarantined one.
    pub(crate) const fn next(self) -> Option<u32> {
        (self.0 >> NUMBER_SHIFT).checked_sub(1)
    }

    /// Windows open on it, 0 to [`MOST_WINDOWS`].
    pub(crate) const fn windows(self) -> u32 {
        self.0 >> KIND_BITS & MOST_WINDOWS
    }

    /// The same with another number of windows, at most [`MOST_WINDOWS`].
    pub(crate) const fn with_windows(self, windows: u32) -> Self {
        Self(self.0 & !(MOST_WINDOWS << KIND_BITS) | windows << KIND_BITS)
    }
}

impl Owner {
    /// Whether its number fits a word.
    pub(crate) const fn is_expressible(self) -> bool {
        match self {
            Self::Task(id) | Self::Vm(id) | Self::Secret(id) => id < NUMBERS,
            Self::Hv | Self::Device => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_read_back(id in 0..NUMBERS, windows in 0..=MOST_WINDOWS, next in 0..NUMBERS - 1) {
            let owners =
                [Owner::Hv, Owner::Task(id), Owner::Vm(id), Owner::Secret(id), Owner::Device];
            for owner in owners {
                let word = Word::owned(owner).with_windows(MOST_WINDOWS).with_windows(windows);
                prop_assert_eq!(word.state(), FrameState::Owned(owner));
                prop_assert_eq!(word.windows(), windows);
            }
            for next in [None, Some(next)] {
                prop_assert_eq!(Word::free(next).next(), next);
                prop_assert_eq!(Word::free(next).state(), FrameState::Free);
                prop_assert_eq!(Word::quarantined(next).next(), next);
                prop_assert_eq!(Word::quarantined(next).state(), FrameState::Quarantined);
            }
        }
    }
}
