//! Permission counters against those of the Heki RFC, on the address space of a kernel with 64 GiB.
//!
//! `cargo bench -p integrity` prints times, and the bytes that either takes.

mod naive;

use addr::{FRAMES_PER_1G, FRAMES_PER_2M, FrameRange, Gfn, GuestPhysical};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use integrity::Rights;
use integrity::rights::{Counters, storage_bytes};
use naive::Naive;
use std::hint::black_box;

const FRAMES: u64 = 64 * FRAMES_PER_1G;
const RW: Rights = Rights::READ.union(Rights::WRITE);
const RX: Rights = Rights::READ.union(Rights::EXECUTE);

type Leaf = (FrameRange<GuestPhysical>, Rights);

fn leaf(start: u64, frames: u64, rights: Rights) -> Leaf {
    (FrameRange::with_count(Gfn::new(start), frames), rights)
}

/// A direct map of leaves of one size.
fn direct_map(frames: u64) -> Vec<Leaf> {
    (0..FRAMES / frames).map(|number| leaf(number * frames, frames, RW)).collect()
}

/// As Linux has it after boot: the first GiB of the direct map in 2 MiB leaves, a few of them split;
/// the rest in leaves of 1 GiB; an image of 16 MiB of code; 400 MiB of vmalloc and modules.
fn linux() -> Vec<Leaf> {
    let split = |block: u64| block % 64 == 3;
    let mut leaves = Vec::new();
    for block in 0..512 {
        let start = block * FRAMES_PER_2M;
        if split(block) {
            leaves.extend((start..start + FRAMES_PER_2M).map(|frame| leaf(frame, 1, RW)));
        } else {
            leaves.push(leaf(start, FRAMES_PER_2M, RW));
        }
    }
    leaves.extend((1..64).map(|number| leaf(number * FRAMES_PER_1G, FRAMES_PER_1G, RW)));
    leaves.extend((8..16).map(|block| leaf(block * FRAMES_PER_2M, FRAMES_PER_2M, RX)));
    leaves.extend((0..100_000_u64).map(|page| leaf(page * 7919 % FRAMES, 1, RW)));
    leaves
}

fn storage() -> Vec<u8> {
    vec![0; addr::length(storage_bytes(FRAMES))]
}

fn build(criterion: &mut Criterion) {
    let shapes = [("linux", linux()), ("2m", direct_map(FRAMES_PER_2M)), ("4k", direct_map(1))];
    let mut group = criterion.benchmark_group("build");
    group.sample_size(10);
    for (name, leaves) in &shapes {
        let mut naive = Naive::default();
        leaves.iter().for_each(|(range, rights)| naive.map(*range, *rights));
        println!("{name}: {} leaves; {} bytes, RFC {}", leaves.len(), storage().len(), naive.bytes);
        let mut storage = storage();
        group.bench_function(format!("{name}/counters"), |bencher| {
            bencher.iter(|| {
                let mut counters = Counters::new(FRAMES, &mut storage);
                leaves.iter().for_each(|(range, rights)| counters.map(*range, *rights));
                black_box(counters.collective(Gfn::new(5)))
            });
        });
        group.bench_function(format!("{name}/rfc"), |bencher| {
            bencher.iter_batched(
                Naive::default,
                |mut naive| {
                    leaves.iter().for_each(|(range, rights)| naive.map(*range, *rights));
                    naive
                },
                BatchSize::PerIteration,
            );
        });
    }
}

/// Makes the whole direct map read-only and writable again, in leaves of one size.
fn update(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("update");
    group.sample_size(10);
    let shapes = [
        ("1g", direct_map(FRAMES_PER_1G)),
        ("2m", direct_map(FRAMES_PER_2M)),
        ("4k", direct_map(1)),
    ];
    for (name, leaves) in &shapes {
        let mut storage = storage();
        let mut counters = Counters::new(FRAMES, &mut storage);
        leaves.iter().for_each(|(range, rights)| counters.map(*range, *rights));
        group.bench_function(format!("{name}/counters"), |bencher| {
            bencher.iter(|| {
                let there = leaves
                    .iter()
                    .map(|(range, rights)| counters.update(*range, *rights, Rights::READ));
                assert_eq!(there.filter(Result::is_err).count(), 0);
                let back = leaves
                    .iter()
                    .map(|(range, rights)| counters.update(*range, Rights::READ, *rights));
                assert_eq!(back.filter(Result::is_err).count(), 0);
            });
        });
        let mut naive = Naive::default();
        leaves.iter().for_each(|(range, rights)| naive.map(*range, *rights));
        group.bench_function(format!("{name}/rfc"), |bencher| {
            bencher.iter(|| {
                leaves
                    .iter()
                    .for_each(|(range, rights)| naive.update(*range, *rights, Rights::READ));
                leaves
                    .iter()
                    .for_each(|(range, rights)| naive.update(*range, Rights::READ, *rights));
            });
        });
    }
}

criterion_group!(benches, build, update);
criterion_main!(benches);
