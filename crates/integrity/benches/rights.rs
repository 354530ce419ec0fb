//! Permission counters against those of the Heki RFC, on the address space of a kernel with 64 GiB.
//!
//! `cargo bench -p integrity` prints times, how many times faster the counters are, and the bytes
//! that either takes. Both are fed with what the walker of guest tables finds in the same tables,
//! and agree at the end: the counters take a run of leaves as one, the RFC's frame by frame. The
//! walk, which both need, is timed by itself. So is what no counters of a byte can do without where
//! frames are scattered: to fetch the byte.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails measures nothing")]

mod naive;
mod tables;

use addr::{FRAMES_PER_1G, FrameRange, Gfn, GuestPhysical};
use criterion::{Criterion, criterion_group, criterion_main};
use integrity::Rights;
use integrity::rights::{Counters, storage_bytes};
use naive::Naive;
use paging::guest::GuestLeaf;
use race::Race;
use tables::{Shape, Tables};

/// Frames of the machine.
const FRAMES: u64 = 64 * FRAMES_PER_1G;

/// Leaves of a walk in 8 bytes, so that reading them takes little time: frame, number of frames,
/// rights.
struct Found(u64);

impl Found {
    fn new(leaf: &GuestLeaf) -> Self {
        let mut rights = Rights::READ;
        rights.set(Rights::WRITE, leaf.rights.write);
        rights.set(Rights::EXECUTE, leaf.rights.execute);
        let frames = leaf.frames();
        Self(frames.start.raw() << 32 | frames.count() << 8 | u64::from(rights.bits()))
    }

    fn frames(&self) -> FrameRange<GuestPhysical> {
        FrameRange::with_count(Gfn::new(self.0 >> 32), self.0 >> 8 & 0xff_ffff)
    }

    fn rights(&self) -> Rights {
        let [bits, ..] = self.0.to_le_bytes();
        Rights::from_bits_truncate(bits)
    }
}

fn build_ours<'a>(storage: &'a mut [u8], found: &[Found]) -> Counters<'a> {
    let mut counters = Counters::new(FRAMES, storage);
    let mut batch = counters.batch();
    found.iter().for_each(|leaf| batch.map(leaf.frames(), leaf.rights()));
    batch.finish().unwrap();
    counters
}

fn build_naive(found: &[Found]) -> Naive {
    let mut naive = Naive::default();
    found.iter().for_each(|leaf| naive.map(leaf.frames(), leaf.rights()));
    naive
}

/// All becomes read-only and, in a second pass, what it was.
fn update_ours(counters: &mut Counters<'_>, found: &[Found]) {
    let mut batch = counters.batch();
    found.iter().for_each(|leaf| batch.update(leaf.frames(), leaf.rights(), Rights::READ));
    found.iter().for_each(|leaf| batch.update(leaf.frames(), Rights::READ, leaf.rights()));
    batch.finish().unwrap();
}

fn update_naive(naive: &mut Naive, found: &[Found]) {
    found.iter().for_each(|leaf| naive.update(leaf.frames(), leaf.rights(), Rights::READ));
    found.iter().for_each(|leaf| naive.update(leaf.frames(), Rights::READ, leaf.rights()));
}

/// Adds 1 to a byte for each frame in turn.
fn fetch(bytes: &mut [u8], found: &[Found]) {
    for leaf in found {
        let byte = &mut bytes[addr::length(leaf.frames().start.raw())];
        *byte = byte.wrapping_add(1);
    }
}

/// Stops unless both say the same of every frame.
fn compare(counters: &Counters<'_>, naive: &mut Naive) {
    for (frame, collective) in counters.iter() {
        let counts = [collective.readable, collective.writable, collective.executable];
        assert_eq!(counts.map(u32::from), *naive.at(frame.raw()), "{frame:?}");
    }
    assert!(counters.collective(Gfn::new(FRAMES - 1)).is_some());
}

fn storage() -> Vec<u8> {
    vec![0; addr::length(storage_bytes(FRAMES))]
}

fn both(criterion: &mut Criterion) {
    for shape in Shape::ALL {
        let tables = Tables::new(shape);
        let mut found = Vec::new();
        tables.visit(|leaf| found.push(Found::new(&leaf)));
        let race = |work: &str| {
            let name = format!("{work}, {}", shape.name());
            Race { name, pieces: FRAMES, piece: "frame", samples: 10 }
        };
        // Both take their memory from the system in each run, and free it when the time is taken.
        let ours = |storage: &mut Vec<u8>| {
            *storage = self::storage();
            build_ours(storage, &found);
        };
        let theirs = |naive: &mut Naive| *naive = build_naive(&found);
        race("build").run(
            criterion,
            ("counters", Vec::new, ours),
            ("the RFC", Naive::default, theirs),
        );

        let mut storage = self::storage();
        let bytes = storage.len();
        let mut counters = build_ours(&mut storage, &found);
        let mut naive = build_naive(&found);
        compare(&counters, &mut naive);
        race("update twice").run(
            criterion,
            ("counters", || (), |()| update_ours(&mut counters, &found)),
            ("the RFC", || (), |()| update_naive(&mut naive, &found)),
        );
        compare(&counters, &mut naive);

        let mut leaves = 0;
        let walk = |(): &mut ()| {
            leaves = 0;
            tables.visit(|leaf| leaves += leaf.count);
        };
        race("either").lap(criterion, "the walk", || (), walk);
        if matches!(shape, Shape::Scattered) {
            let fetch = |(): &mut ()| fetch(&mut storage, &found);
            race("either").lap(criterion, "to fetch a byte", || (), fetch);
        }
        let (name, runs) = (shape.name(), found.len());
        println!("{name}: {leaves} leaves in {runs} runs; {bytes} bytes, RFC {}\n", naive.bytes);
    }
}

criterion_group!(benches, both);
criterion_main!(benches);
