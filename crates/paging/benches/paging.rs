//! `cargo bench -p paging`: what a page costs when a range is mapped, protected, walked and
//! unmapped, next to the `x86_64` crate's `OffsetPageTable` in the same memory, and how many times
//! less it is.
//!
//! Both use 4 KiB leaves only and check what they are documented to check; neither flushes. What
//! they leave in the tables is compared. Pages lead to consecutive frames or, where it makes a
//! difference, to frames in no order.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails measures nothing")]

use addr::{FrameRange, Hfn, HostVirtual, Hpn};
use criterion::{Criterion, criterion_group, criterion_main};
use paging::{ENTRIES, HostRights, LINE, Level, PageTable, TableMemory, X86_64};
use race::Race;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::hint::black_box;
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageTableFlags as Flags, PhysFrame, Size4KiB,
    Translate,
};
use x86_64::{PhysAddr, VirtAddr};

/// Pages in the range: 64 MiB.
const PAGES: u64 = 1 << 14;
/// Where it starts.
const FIRST: u64 = 0x4000_0000 >> addr::PAGE_SHIFT;
/// Where it leads.
const OUTPUT: u64 = 0x1_0000_0000 >> addr::PAGE_SHIFT;
/// Table pages in the arena: three above 32 lowest ones, and some to spare.
const TABLES: usize = 64;

#[repr(align(4096))]
struct Pages(#[expect(dead_code, reason = "for its layout only")] [[u64; ENTRIES]; TABLES]);

/// Table pages one after another; frame 0 is the first.
struct Arena {
    base: *mut u64,
    used: usize,
}

impl Arena {
    const LAYOUT: Layout = Layout::new::<Pages>();

    fn new() -> Self {
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc_zeroed(Self::LAYOUT) }.cast();
        Self { base, used: 0 }
    }

    /// All pages free and zero again.
    fn reset(&mut self) {
        // SAFETY: the arena has this many pages.
        unsafe { self.base.write_bytes(0, TABLES * ENTRIES) };
        self.used = 0;
    }

    fn entry(&self, table: Hfn, index: usize) -> *mut u64 {
        let table = usize::try_from(table.raw()).unwrap();
        self.base.wrapping_add((table % TABLES) * ENTRIES + index % ENTRIES)
    }

    /// The reference, with an empty root. Not to be used when the arena is gone.
    fn offset_page_table(&mut self) -> OffsetPageTable<'static> {
        self.reset();
        self.used = 1;
        // SAFETY: callers keep the arena; its first page is zero, and "physical" address 0 is its
        // start.
        unsafe { OffsetPageTable::new(&mut *self.base.cast(), VirtAddr::from_ptr(self.base)) }
    }

    fn page_table(&mut self) -> PageTable<X86_64> {
        self.reset();
        PageTable::new(self).unwrap()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base.cast(), Self::LAYOUT) };
    }
}

impl TableMemory for Arena {
    fn read(&self, table: Hfn, index: usize) -> u64 {
        // SAFETY: `entry` stays inside the arena.
        unsafe { self.entry(table, index).read_volatile() }
    }
    fn write(&mut self, table: Hfn, index: usize, entry: u64) {
        // SAFETY: as for `read`.
        unsafe { self.entry(table, index).write_volatile(entry) };
    }
    fn read_line(&self, table: Hfn, line: usize) -> [u64; LINE] {
        let first = self.entry(table, line * LINE);
        // SAFETY: lines divide a table, so all of it is inside the arena.
        core::array::from_fn(|offset| unsafe { first.add(offset).read_volatile() })
    }
    fn write_line(&mut self, table: Hfn, line: usize, entries: [u64; LINE]) {
        let first = self.entry(table, line * LINE);
        for (offset, entry) in entries.into_iter().enumerate() {
            // SAFETY: as for `read_line`.
            unsafe { first.add(offset).write_volatile(entry) };
        }
    }
    fn allocate(&mut self) -> Option<Hfn> {
        self.used += 1;
        (self.used <= TABLES).then(|| Hfn::new(self.used as u64 - 1))
    }
    fn free(&mut self, _table: Hfn) {}
}

// SAFETY: pages are handed out once each.
unsafe impl FrameAllocator<Size4KiB> for Arena {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let frame = self.allocate()?;
        Some(PhysFrame::containing_address(PhysAddr::new(frame.start().raw())))
    }
}

fn range() -> FrameRange<HostVirtual> {
    FrameRange::with_count(Hpn::new(FIRST), PAGES)
}

fn pages() -> impl Iterator<Item = Page> {
    range().iter().map(|page| Page::containing_address(VirtAddr::new(page.start().raw())))
}

const DATA: HostRights = HostRights::READ_WRITE;
const DATA_FLAGS: Flags = Flags::PRESENT.union(Flags::WRITABLE).union(Flags::NO_EXECUTE);
const READ_FLAGS: Flags = Flags::PRESENT.union(Flags::NO_EXECUTE);

/// Where the pages lead.
#[derive(Clone, Copy)]
enum Frames {
    Consecutive,
    /// No two neighbours to neighbours.
    Scattered,
}

impl Frames {
    const fn of(self, number: u64) -> u64 {
        OUTPUT
            + match self {
                Self::Consecutive => number,
                Self::Scattered => number * 5 % PAGES,
            }
    }
}

type Ours = (Arena, PageTable<X86_64>);
type Reference = (Arena, OffsetPageTable<'static>);

fn ours() -> Ours {
    let mut arena = Arena::new();
    let table = arena.page_table();
    (arena, table)
}

fn reference() -> Reference {
    let mut arena = Arena::new();
    let table = arena.offset_page_table();
    (arena, table)
}

fn map((arena, table): &mut Ours) {
    table.map(arena, range(), Hfn::new(OUTPUT), DATA, Level::Page4K).unwrap();
}

fn map_reference((arena, table): &mut Reference, frames: Frames) {
    for (page, number) in pages().zip(0..) {
        let start = PhysAddr::new(frames.of(number) << addr::PAGE_SHIFT);
        let frame = PhysFrame::containing_address(start);
        // SAFETY: no CPU walks these tables.
        unsafe { table.map_to(page, frame, DATA_FLAGS, arena) }.unwrap().ignore();
    }
}

fn ours_with(frames: Frames) -> Ours {
    let mut ours = ours();
    match frames {
        Frames::Consecutive => map(&mut ours),
        Frames::Scattered => {
            for (page, number) in range().iter().zip(0..) {
                let page = FrameRange::with_count(page, 1);
                let output = Hfn::new(frames.of(number));
                ours.1.map(&mut ours.0, page, output, DATA, Level::Page4K).unwrap();
            }
        }
    }
    ours
}

fn reference_with(frames: Frames) -> Reference {
    let mut reference = reference();
    map_reference(&mut reference, frames);
    reference
}

fn protect((arena, table): &mut Ours, rights: HostRights) {
    let removed = table.protect(arena, range(), rights).unwrap();
    removed.release(arena, |due| due.unnecessary());
}

fn protect_reference((_, table): &mut Reference, flags: Flags) {
    for page in pages() {
        // SAFETY: no CPU walks these tables.
        unsafe { table.update_flags(page, flags) }.unwrap().ignore();
    }
}

/// The sum of all frames' addresses.
fn walk((arena, table): &Ours) -> u64 {
    let leaves = table.cursor(arena, black_box(range())).unwrap();
    leaves.fold(0, |sum, (pages, leaf)| {
        let count = pages.count();
        let frames = leaf.frame.raw() * count + count * (count - 1) / 2;
        sum.wrapping_add(frames << addr::PAGE_SHIFT)
    })
}

fn walk_reference((_, table): &Reference) -> u64 {
    let frames = black_box(pages())
        .map(|page| table.translate_addr(page.start_address()).map_or(0, PhysAddr::as_u64));
    frames.fold(0, u64::wrapping_add)
}

fn unmap((arena, table): &mut Ours) {
    let removed = table.unmap(arena, range()).unwrap();
    removed.release(arena, |due| due.unnecessary());
}

fn unmap_reference((_, table): &mut Reference) {
    for page in pages() {
        table.unmap(page).unwrap().1.ignore();
    }
}

/// Stops unless both tables say the same of every page: frame, and whether it can be written.
fn compare(ours: &Ours, reference: &Reference) {
    use x86_64::structures::paging::mapper::TranslateResult::Mapped;
    for page in range().iter() {
        let leaf = ours.1.walk(&ours.0, page).map(|leaf| (leaf.frame.start().raw(), leaf.rights));
        let expected = match reference.1.translate(VirtAddr::new(page.start().raw())) {
            Mapped { frame, flags, .. } => {
                let rights = HostRights {
                    write: flags.contains(Flags::WRITABLE),
                    execute: !flags.contains(Flags::NO_EXECUTE),
                    ..HostRights::READ
                };
                Some((frame.start_address().as_u64(), rights))
            }
            _ => None,
        };
        assert_eq!(leaf, expected);
    }
}

fn race(name: &str) -> Race<'static> {
    Race { name: name.into(), pieces: PAGES, piece: "page", samples: 100 }
}

fn mapping(criterion: &mut Criterion) {
    let frames = Frames::Consecutive;
    compare(&ours_with(frames), &reference_with(frames));
    let theirs = |state: &mut Reference| map_reference(state, frames);
    race("map").run(criterion, ("ravelin", ours, map), ("x86_64", reference, theirs));
}

fn protecting(criterion: &mut Criterion) {
    let both = [(Frames::Consecutive, "protect"), (Frames::Scattered, "protect, frames scattered")];
    for (frames, name) in both {
        let (mut ours, mut reference) = (ours_with(frames), reference_with(frames));
        for (rights, flags) in [(HostRights::READ, READ_FLAGS), (DATA, DATA_FLAGS)] {
            protect(&mut ours, rights);
            protect_reference(&mut reference, flags);
            compare(&ours, &reference);
        }
        let mut rights = [HostRights::READ, DATA].into_iter().cycle();
        let mut flags = [READ_FLAGS, DATA_FLAGS].into_iter().cycle();
        race(name).run(
            criterion,
            (
                "ravelin",
                || rights.next().unwrap(),
                |rights: &mut HostRights| protect(&mut ours, *rights),
            ),
            (
                "x86_64",
                || flags.next().unwrap(),
                |flags: &mut Flags| protect_reference(&mut reference, *flags),
            ),
        );
    }
}

fn walking(criterion: &mut Criterion) {
    for (frames, name) in
        [(Frames::Consecutive, "walk"), (Frames::Scattered, "walk, frames scattered")]
    {
        let (ours, reference) = (ours_with(frames), reference_with(frames));
        assert_eq!(walk(&ours), walk_reference(&reference));
        race(name).run(
            criterion,
            ("ravelin", || (), |(): &mut ()| assert_ne!(walk(&ours), 0)),
            ("x86_64", || (), |(): &mut ()| assert_ne!(walk_reference(&reference), 0)),
        );
    }
}

fn unmapping(criterion: &mut Criterion) {
    let frames = Frames::Consecutive;
    let (mut ours, mut reference) = (ours_with(frames), reference_with(frames));
    unmap(&mut ours);
    unmap_reference(&mut reference);
    compare(&ours, &reference);
    let (ours, reference) = (move || ours_with(frames), move || reference_with(frames));
    race("unmap").run(criterion, ("ravelin", ours, unmap), ("x86_64", reference, unmap_reference));
}

criterion_group!(benches, mapping, protecting, walking, unmapping);
criterion_main!(benches);
