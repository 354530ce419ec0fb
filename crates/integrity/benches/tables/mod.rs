//! The page tables of a kernel with 64 GiB, in memory as a guest has them.

use crate::FRAMES;
use addr::{FRAMES_PER_1G, FRAMES_PER_2M, FrameRange, Gpa, Gva, Hfn, Hpn, PAGE_SHIFT};
use paging::guest::{GuestLeaf, visit_kernel_half};
use paging::{ENTRIES, HostRights, Level, PageTable, TableMemory, X86_64};

/// How the memory is mapped.
#[derive(Clone, Copy)]
pub enum Shape {
    /// As Linux has it after boot: the first GiB of the direct map in 2 MiB leaves, a few of them
    /// split; the rest in leaves of 1 GiB; an image of 16 MiB of code; 400 MiB of vmalloc and
    /// modules.
    Linux,
    /// A direct map of leaves of one size.
    Leaves(Level),
    /// Leaves of 4 KiB; every frame once, no two neighbours after one another.
    Scattered,
}

const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
const VMALLOC: u64 = 0xffff_c900_0000_0000;
const IMAGE: u64 = 0xffff_ffff_8100_0000;

impl Shape {
    pub const ALL: [Self; 5] = [
        Self::Linux,
        Self::Leaves(Level::Page1G),
        Self::Leaves(Level::Page2M),
        Self::Leaves(Level::Page4K),
        Self::Scattered,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Linux => "as Linux maps",
            Self::Leaves(Level::Page4K) => "leaves of 4 KiB",
            Self::Leaves(Level::Page2M) => "leaves of 2 MiB",
            Self::Leaves(_) => "leaves of 1 GiB",
            Self::Scattered => "leaves of 4 KiB, frames scattered",
        }
    }
}

/// Table pages; a table's frame is its place.
#[derive(Default)]
struct Pages(Vec<[u64; ENTRIES]>);

impl Pages {
    fn place(table: Hfn) -> usize {
        usize::try_from(table.raw()).unwrap()
    }
}

impl TableMemory for Pages {
    fn read(&self, table: Hfn, index: usize) -> u64 {
        self.0[Self::place(table)][index]
    }
    fn write(&mut self, table: Hfn, index: usize, entry: u64) {
        self.0[Self::place(table)][index] = entry;
    }
    fn allocate(&mut self) -> Option<Hfn> {
        self.0.push([0; ENTRIES]);
        Some(Hfn::new(self.0.len() as u64 - 1))
    }
    fn free(&mut self, _table: Hfn) {}
}

/// Tables of some shape.
pub struct Tables {
    pages: Pages,
    table: PageTable<X86_64>,
}

impl Tables {
    pub fn new(shape: Shape) -> Self {
        let mut pages = Pages::default();
        let table = PageTable::new(&mut pages).unwrap();
        let mut tables = Self { pages, table };
        let data = HostRights::READ_WRITE;
        match shape {
            Shape::Linux => {
                tables.map(DIRECT_MAP, 0, FRAMES_PER_1G, data, Level::Page2M);
                let rest = FRAMES - FRAMES_PER_1G;
                tables.map(DIRECT_MAP + (1 << 30), FRAMES_PER_1G, rest, data, Level::Page1G);
                for block in (3..512).step_by(64) {
                    let page = Hpn::new(DIRECT_MAP >> PAGE_SHIFT).plus(block * FRAMES_PER_2M);
                    let block = FrameRange::with_count(page, FRAMES_PER_2M);
                    let split = tables.table.split(&mut tables.pages, block, Level::Page4K);
                    split.unwrap().release(&mut tables.pages, |due| due.unnecessary());
                }
                let image = (8 * FRAMES_PER_2M, 8 * FRAMES_PER_2M);
                tables.map(IMAGE, image.0, image.1, HostRights::READ_EXECUTE, Level::Page2M);
                for page in 0..100_000 {
                    let frame = page * 7919 % FRAMES;
                    tables.map(VMALLOC + (page << PAGE_SHIFT), frame, 1, data, Level::Page4K);
                }
            }
            Shape::Leaves(level) => tables.map(DIRECT_MAP, 0, FRAMES, data, level),
            Shape::Scattered => {
                for page in 0..FRAMES {
                    // Any odd number does.
                    let frame = page * 0x9e37_79b1 % FRAMES;
                    tables.map(DIRECT_MAP + (page << PAGE_SHIFT), frame, 1, data, Level::Page4K);
                }
            }
        }
        tables
    }

    fn map(&mut self, address: u64, frame: u64, count: u64, rights: HostRights, largest: Level) {
        let pages = FrameRange::with_count(Hpn::new(address >> PAGE_SHIFT), count);
        self.table.map(&mut self.pages, pages, Hfn::new(frame), rights, largest).unwrap();
    }

    /// Shows all leaves, as the survey of a guest does.
    pub fn visit(&self, f: impl FnMut(GuestLeaf)) {
        let mut buffers = [[0; ENTRIES]; 5];
        let root = Gpa::new(self.table.root().start().raw());
        let read = |table: Gpa, entries: &mut [u64; ENTRIES]| {
            let page = usize::try_from(table.frame().raw()).ok();
            let page = page.and_then(|page| self.pages.0.get(page));
            page.inspect(|page| entries.copy_from_slice(*page)).is_some()
        };
        visit_kernel_half(root, 4, Gva::new(0), u64::MAX, &mut buffers, read, f).unwrap();
    }
}
