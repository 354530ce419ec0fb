//! `cargo bench -p paging`: what a page costs when a range is mapped, protected, walked and
//! unmapped, next to the `x86_64` crate's `OffsetPageTable` in the same memory.
//!
//! Both use 4 KiB leaves only and check what they are documented to check; neither flushes.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails measures nothing")]

use addr::{FrameRange, Hfn, HostVirtual, Hpn};
use criterion::{BatchSize, BenchmarkGroup, Criterion, Throughput};
use criterion::{criterion_group, criterion_main, measurement::WallTime};
use paging::{ENTRIES, HostRights, Level, PageTable, TableMemory, X86_64};
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

fn map(arena: &mut Arena, table: &mut PageTable<X86_64>) {
    table.map(arena, range(), Hfn::new(OUTPUT), DATA, Level::Page4K).unwrap();
}

fn map_reference(arena: &mut Arena, table: &mut OffsetPageTable<'_>) {
    for (page, frame) in pages().zip(OUTPUT..) {
        let frame = PhysFrame::containing_address(PhysAddr::new(frame << addr::PAGE_SHIFT));
        // SAFETY: no CPU walks these tables.
        unsafe { table.map_to(page, frame, DATA_FLAGS, arena) }.unwrap().ignore();
    }
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> Group<'a> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(PAGES));
    group
}

fn mapping(criterion: &mut Criterion) {
    let mut group = group(criterion, "map");
    let arena = Arena::new;
    group.bench_function("ravelin", |bencher| {
        let setup = || {
            let mut arena = arena();
            let table = arena.page_table();
            (arena, table)
        };
        let routine = |(arena, table): &mut (Arena, _)| map(arena, table);
        bencher.iter_batched_ref(setup, routine, BatchSize::PerIteration);
    });
    group.bench_function("x86_64", |bencher| {
        let setup = || {
            let mut arena = arena();
            let table = arena.offset_page_table();
            (arena, table)
        };
        let routine = |(arena, table): &mut (Arena, _)| map_reference(arena, table);
        bencher.iter_batched_ref(setup, routine, BatchSize::PerIteration);
    });
}

fn protecting(criterion: &mut Criterion) {
    let mut group = group(criterion, "protect");
    let mut arena = Arena::new();
    let mut table = arena.page_table();
    map(&mut arena, &mut table);
    group.bench_function("ravelin", |bencher| {
        let mut rights = [HostRights::READ, DATA].into_iter().cycle();
        bencher.iter(|| {
            let rights = rights.next().unwrap();
            let removed = table.protect(&mut arena, range(), rights).unwrap();
            removed.release(&mut arena, |due| due.unnecessary());
        });
    });
    let mut table = arena.offset_page_table();
    map_reference(&mut arena, &mut table);
    group.bench_function("x86_64", |bencher| {
        let mut flags = [READ_FLAGS, DATA_FLAGS].into_iter().cycle();
        bencher.iter(|| {
            let flags = flags.next().unwrap();
            for page in pages() {
                // SAFETY: no CPU walks these tables.
                unsafe { table.update_flags(page, flags) }.unwrap().ignore();
            }
        });
    });
}

fn walking(criterion: &mut Criterion) {
    let mut group = group(criterion, "walk");
    let mut arena = Arena::new();
    let mut table = arena.page_table();
    map(&mut arena, &mut table);
    group.bench_function("ravelin", |bencher| {
        bencher.iter(|| {
            let leaves = table.cursor(&arena, black_box(range())).unwrap();
            leaves.fold(0, |sum: u64, (_, leaf)| sum.wrapping_add(leaf.frame.raw()))
        });
    });
    let mut table = arena.offset_page_table();
    map_reference(&mut arena, &mut table);
    group.bench_function("x86_64", |bencher| {
        bencher.iter(|| {
            let frames = black_box(pages())
                .map(|page| table.translate_addr(page.start_address()).map_or(0, PhysAddr::as_u64));
            frames.fold(0, u64::wrapping_add)
        });
    });
}

fn unmapping(criterion: &mut Criterion) {
    let mut group = group(criterion, "unmap");
    group.bench_function("ravelin", |bencher| {
        let setup = || {
            let mut arena = Arena::new();
            let mut table = arena.page_table();
            map(&mut arena, &mut table);
            (arena, table)
        };
        let routine = |(arena, table): &mut (Arena, PageTable<X86_64>)| {
            let removed = table.unmap(arena, range()).unwrap();
            removed.release(arena, |due| due.unnecessary());
        };
        bencher.iter_batched_ref(setup, routine, BatchSize::PerIteration);
    });
    group.bench_function("x86_64", |bencher| {
        let setup = || {
            let mut arena = Arena::new();
            let mut table = arena.offset_page_table();
            map_reference(&mut arena, &mut table);
            (arena, table)
        };
        let routine = |(_, table): &mut (Arena, OffsetPageTable<'_>)| {
            for page in pages() {
                table.unmap(page).unwrap().1.ignore();
            }
        };
        bencher.iter_batched_ref(setup, routine, BatchSize::PerIteration);
    });
}

criterion_group!(benches, mapping, protecting, walking, unmapping);
criterion_main!(benches);
