//! Permission counters against those of the Heki RFC, on the address space of a kernel with 64 GiB.
//!
//! `cargo bench -p integrity` prints times, how many times faster the counters are, and the bytes
//! that either takes. Both are fed with the same leaves, one by one, and agree at the end.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails measures nothing")]

mod naive;

use addr::{FRAMES_PER_1G, FRAMES_PER_2M, FrameRange, Gfn, GuestPhysical};
use criterion::{Criterion, criterion_group, criterion_main};
use integrity::Rights;
use integrity::rights::{Counters, storage_bytes};
use naive::Naive;
use race::Race;

const FRAMES: u64 = 64 * FRAMES_PER_1G;
const RW: Rights = Rights::READ.union(Rights::WRITE);
const RX: Rights = Rights::READ.union(Rights::EXECUTE);

/// A leaf in 8 bytes, like an entry of a page table: frame, log2 of its frames, rights.
#[derive(Clone, Copy)]
struct Leaf(u64);

impl Leaf {
    fn new(start: u64, frames: u64, rights: Rights) -> Self {
        Self(start << 16 | u64::from(frames.ilog2()) << 8 | u64::from(rights.bits()))
    }

    fn range(self) -> FrameRange<GuestPhysical> {
        FrameRange::with_count(Gfn::new(self.0 >> 16), 1 << (self.0 >> 8 & 0xff))
    }

    fn rights(self) -> Rights {
        let [bits, ..] = self.0.to_le_bytes();
        Rights::from_bits_truncate(bits)
    }
}

/// A direct map of leaves of one size.
fn direct_map(frames: u64) -> Vec<Leaf> {
    (0..FRAMES / frames).map(|number| Leaf::new(number * frames, frames, RW)).collect()
}

/// Every frame once, no two neighbours after one another.
fn scattered() -> Vec<Leaf> {
    // Any odd number does.
    (0..FRAMES).map(|number| Leaf::new(number * 0x9e37_79b1 % FRAMES, 1, RW)).collect()
}

/// As Linux has it after boot: the first GiB of the direct map in 2 MiB leaves, a few of them split;
/// the rest in leaves of 1 GiB; an image of 16 MiB of code; 400 MiB of vmalloc and modules.
fn linux() -> Vec<Leaf> {
    let split = |block: u64| block % 64 == 3;
    let mut leaves = Vec::new();
    for block in 0..512 {
        let start = block * FRAMES_PER_2M;
        if split(block) {
            leaves.extend((start..start + FRAMES_PER_2M).map(|frame| Leaf::new(frame, 1, RW)));
        } else {
            leaves.push(Leaf::new(start, FRAMES_PER_2M, RW));
        }
    }
    leaves.extend((1..64).map(|number| Leaf::new(number * FRAMES_PER_1G, FRAMES_PER_1G, RW)));
    leaves.extend((8..16).map(|block| Leaf::new(block * FRAMES_PER_2M, FRAMES_PER_2M, RX)));
    leaves.extend((0..100_000_u64).map(|page| Leaf::new(page * 7919 % FRAMES, 1, RW)));
    leaves
}

fn build_ours<'a>(storage: &'a mut [u8], leaves: &[Leaf]) -> Counters<'a> {
    let mut counters = Counters::new(FRAMES, storage);
    let mut batch = counters.batch();
    leaves.iter().for_each(|leaf| batch.map(leaf.range(), leaf.rights()));
    batch.finish().unwrap();
    counters
}

fn build_naive(leaves: &[Leaf]) -> Naive {
    let mut naive = Naive::default();
    leaves.iter().for_each(|leaf| naive.map(leaf.range(), leaf.rights()));
    naive
}

/// Makes all read-only and, in a second pass, what it was.
fn update_ours(counters: &mut Counters<'_>, leaves: &[Leaf]) {
    let mut batch = counters.batch();
    leaves.iter().for_each(|leaf| batch.update(leaf.range(), leaf.rights(), Rights::READ));
    leaves.iter().for_each(|leaf| batch.update(leaf.range(), Rights::READ, leaf.rights()));
    batch.finish().unwrap();
}

fn update_naive(naive: &mut Naive, leaves: &[Leaf]) {
    leaves.iter().for_each(|leaf| naive.update(leaf.range(), leaf.rights(), Rights::READ));
    leaves.iter().for_each(|leaf| naive.update(leaf.range(), Rights::READ, leaf.rights()));
}

/// Stops unless both say the same of every frame.
fn compare(counters: &Counters<'_>, naive: &mut Naive) {
    for (frame, collective) in counters.iter() {
        let counts = [collective.readable, collective.writable, collective.executable];
        assert_eq!(counts.map(u32::from), *naive.at(frame.raw()), "{frame:?}");
    }
}

fn storage() -> Vec<u8> {
    vec![0; addr::length(storage_bytes(FRAMES))]
}

fn race<'a>(criterion: &'a mut Criterion, work: &str, shape: &str) -> Race<'a> {
    let name = format!("{work}, {shape}");
    Race { criterion, name, pieces: FRAMES, piece: "frame", samples: 10 }
}

fn both(criterion: &mut Criterion) {
    let shapes = [
        ("as Linux maps", linux()),
        ("leaves of 1 GiB", direct_map(FRAMES_PER_1G)),
        ("leaves of 2 MiB", direct_map(FRAMES_PER_2M)),
        ("leaves of 4 KiB", direct_map(1)),
        ("leaves of 4 KiB, frames scattered", scattered()),
    ];
    for (shape, leaves) in &shapes {
        // Both take their memory from the system in each run, and free it when the time is taken.
        let ours = |storage: &mut Vec<u8>| {
            *storage = self::storage();
            build_ours(storage, leaves);
        };
        let theirs = |naive: &mut Naive| *naive = build_naive(leaves);
        race(criterion, "build", shape)
            .run(("counters", Vec::new, ours), ("RFC", Naive::default, theirs));

        let mut storage = self::storage();
        let bytes = storage.len();
        let mut counters = build_ours(&mut storage, leaves);
        let mut naive = build_naive(leaves);
        println!("{shape}: {} leaves; {bytes} bytes, RFC {}\n", leaves.len(), naive.bytes);
        compare(&counters, &mut naive);
        race(criterion, "update", shape).run(
            ("counters", || (), |()| update_ours(&mut counters, leaves)),
            ("RFC", || (), |()| update_naive(&mut naive, leaves)),
        );
        compare(&counters, &mut naive);
    }
}

criterion_group!(benches, both);
criterion_main!(benches);
