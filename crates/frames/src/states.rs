//! One byte of state for every guest frame, shared by all CPUs.
//!
//! The meaning of the byte belongs to the type `S`; a byte that is no `S` is never stored. Each
//! access is one atomic operation, and what a CPU wrote before it set a state is visible to every
//! CPU that reads that state.

use addr::{FrameRange, Gfn, GuestPhysical};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU8, Ordering};
use zerocopy::FromBytes;

/// The states of the frames of one range, in lent storage; a copy shows the same.
#[derive(Clone, Copy, Debug)]
pub struct FrameStates<'a, S> {
    first: Gfn,
    bytes: &'a [AtomicU8],
    state: PhantomData<fn(S) -> S>,
}

impl<'a, S: Copy + Into<u8> + TryFrom<u8>> FrameStates<'a, S> {
    /// States for one frame per byte, from `first` on, all of them `initial`.
    pub fn new(first: Gfn, bytes: &'a mut [u8], initial: S) -> Self {
        bytes.fill(initial.into());
        // Cannot fail: both kinds of bytes are alike.
        let bytes = <[AtomicU8]>::mut_from_bytes(bytes).unwrap_or_default();
        Self { first, bytes, state: PhantomData }
    }

    /// The frames that have a state.
    pub fn range(&self) -> FrameRange<GuestPhysical> {
        FrameRange::with_count(self.first, self.bytes.len() as u64)
    }

    /// The state of a frame; `None` outside the range.
    pub fn get(&self, frame: Gfn) -> Option<S> {
        S::try_from(self.byte(frame)?.load(Ordering::Acquire)).ok()
    }

    /// Sets the state of a frame and answers the one that it had; `None`, and nothing is set,
    /// outside the range.
    pub fn set(&self, frame: Gfn, state: S) -> Option<S> {
        S::try_from(self.byte(frame)?.swap(state.into(), Ordering::AcqRel)).ok()
    }

    /// Sets the state of a frame to `to` if it is `from`. Answers whether it was; `None` outside
    /// the range. Of several CPUs that try at once, one succeeds.
    pub fn change(&self, frame: Gfn, from: S, to: S) -> Option<bool> {
        let byte = self.byte(frame)?;
        let outcome =
            byte.compare_exchange(from.into(), to.into(), Ordering::AcqRel, Ordering::Acquire);
        Some(outcome.is_ok())
    }

    fn byte(&self, frame: Gfn) -> Option<&AtomicU8> {
        let index = frame.raw().checked_sub(self.first.raw())?;
        self.bytes.get(usize::try_from(index).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Get,
        Set(u8),
        Change(u8, u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        let state = || 0_u8..4;
        prop_oneof![
            Just(Op::Get),
            state().prop_map(Op::Set),
            (state(), state()).prop_map(|(from, to)| Op::Change(from, to)),
        ]
    }

    proptest! {
        #[test]
        fn states_match_a_plain_map(
            first in 0_u64..20,
            count in 0_u64..20,
            ops in prop::collection::vec((0_u64..45, op()), 0..200),
        ) {
            let mut bytes: Vec<u8> = (0..count).map(|_| 0xff).collect();
            let states = FrameStates::<u8>::new(Gfn::new(first), &mut bytes, 3);
            let mut model: BTreeMap<u64, u8> = (first..first + count).map(|f| (f, 3)).collect();
            for (raw, op) in ops {
                let frame = Gfn::new(raw);
                prop_assert_eq!(states.range().contains(frame), model.contains_key(&raw));
                let state = model.get_mut(&raw);
                match op {
                    Op::Get => prop_assert_eq!(states.get(frame), state.copied()),
                    Op::Set(to) => {
                        let old = state.map(|state| core::mem::replace(state, to));
                        prop_assert_eq!(states.set(frame, to), old);
                    }
                    Op::Change(from, to) => {
                        let expected = state.map(|state| {
                            let fits = *state == from;
                            *state = if fits { to } else { *state };
                            fits
                        });
                        prop_assert_eq!(states.change(frame, from, to), expected);
                    }
                }
            }
        }
    }
}
