//! Lack of memory at every single allocation of every operation.

use super::memory::FakeMemory;
use super::model::TestFormat;
use crate::{Donated, Ept, Level, MOST_SPLITS, Npt, PageTable, PagingError, Removed, X86_64};
use addr::{Frame, FrameRange, Hfn};

const G1: u64 = Level::Page1G.frames();
const M2: u64 = Level::Page2M.frames();

/// Has an operation meet the end of memory at its first allocation, its second, and so on, until it
/// succeeds. No refusal changes or keeps anything. Checks how many pages the operation takes.
fn takes<T>(
    pages: usize,
    memory: &mut FakeMemory,
    mut operation: impl FnMut(&mut FakeMemory) -> Result<T, PagingError>,
) -> T {
    let before = memory.contents();
    for allowance in 0.. {
        memory.allowance = allowance;
        match operation(memory) {
            Err(error) => {
                assert_eq!(error, PagingError::OutOfMemory);
                assert!(memory.contents() == before, "changed with {allowance} pages");
            }
            Ok(outcome) => {
                assert_eq!((allowance, memory.allowance), (pages, 0));
                memory.allowance = usize::MAX;
                return outcome;
            }
        }
    }
    unreachable!()
}

fn range<F: TestFormat>(start: u64, end: u64) -> FrameRange<F::Input> {
    FrameRange::new(Frame::new(start), Frame::new(end))
}

fn done<F: TestFormat>(removed: Removed<F>, memory: &mut FakeMemory) {
    removed.release(memory, |due| due.acknowledged());
}

fn every_allocation_may_fail<F: TestFormat>() {
    let mut memory = FakeMemory::new();
    let memory = &mut memory;
    let splits = usize::try_from(MOST_SPLITS).unwrap();
    let [first, second, ..] = F::rights()[..] else { unreachable!() };

    let mut table = takes(1, memory, PageTable::<F>::new);
    // Across two entries of the root: 2 leaves of 1 GiB; at both ends some of 4 KiB.
    let all = range::<F>(511 * G1 - M2 - 7, 513 * G1 + 5);
    takes(2 + 2 + 2, memory, |memory| {
        table.map(memory, all, Hfn::new(G1 - M2 - 7), first, Level::Page1G)
    });
    // Both edges in the middle of leaves of 1 GiB.
    let inner = range::<F>(511 * G1 + 1234, 513 * G1 - 1234);
    done(takes(splits, memory, |memory| table.protect(memory, inner, second)), memory);
    // Two leaves of 2 MiB; one is split already.
    let few = range::<F>(511 * G1 + 2 * M2 + 3, 511 * G1 + 4 * M2 + 3);
    done(takes(2, memory, |memory| table.split(memory, few, Level::Page4K)), memory);
    // Two edges in leaves of 2 MiB.
    let hole = range::<F>(511 * G1 + 30 * M2 + 3, 512 * G1 + 40 * M2 + 3);
    done(takes(2, memory, |memory| table.unmap(memory, hole)), memory);
    // Nothing to split.
    done(takes(0, memory, |memory| table.unmap(memory, hole)), memory);
    done(takes(0, memory, |memory| table.collapse(memory, all, Level::Page1G)), memory);

    let start = Frame::new(2000 * G1);
    let mut subtree =
        takes(1, memory, |memory| PageTable::<F>::new_subtree(memory, start, Level::Page2M));
    let part = range::<F>(2000 * G1 + 3, 2000 * G1 + 3 * M2 + 3);
    takes(2, memory, |memory| subtree.map(memory, part, Hfn::new(3), first, Level::Page2M));
    takes(1, memory, |memory| table.link(memory, &mut subtree));
    let page = range::<F>(2000 * G1 + M2 + 1, 2000 * G1 + M2 + 2);
    done(takes(1, memory, |memory| subtree.protect(memory, page, second)), memory);
    done(takes(0, memory, |memory| table.unlink(memory, &mut subtree)), memory);

    takes(7, memory, |memory| Donated::take(memory, 7).map(drop));

    table.destroy(memory, |due| due.acknowledged()).unwrap();
    subtree.destroy(memory, |due| due.acknowledged()).unwrap();
    assert_eq!(memory.used(), 0);
}

#[test]
fn every_allocation_may_fail_in_each_format() {
    every_allocation_may_fail::<X86_64>();
    every_allocation_may_fail::<Npt>();
    every_allocation_may_fail::<Ept>();
}
