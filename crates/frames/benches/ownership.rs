//! `cargo bench -p frames`: what a frame costs from allocation to reuse, in batches that share a
//! flush: the bookkeeping alone, without page tables, flushes and zeroing.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails measures nothing")]

use addr::{FrameRange, Hfn, HostPhysical};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use frames::{Block, DirectMap, Epochs, NoTables, Owner, Ownership, Word};

const FRAMES: u64 = 1 << 15;
const CPUS: usize = 4;

/// No page tables.
struct Nothing;

impl DirectMap for Nothing {
    fn split(&mut self, _frames: FrameRange<HostPhysical>) -> Result<(), NoTables> {
        Ok(())
    }
    fn unmap(&mut self, _frames: FrameRange<HostPhysical>) {}
    fn map(&mut self, _frame: Hfn) -> Result<(), NoTables> {
        Ok(())
    }
    fn zero(&mut self, _frames: FrameRange<HostPhysical>) {}
    fn restore(&mut self, _block: FrameRange<HostPhysical>) -> Result<(), NoTables> {
        Ok(())
    }
}

fn flush(epochs: &Epochs<CPUS>) {
    epochs.request();
    (0..CPUS).filter_map(|cpu| epochs.due(cpu)).for_each(frames::FlushDue::done);
}

fn ownership(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("allocate, free, reclaim");
    for (batch, name) in [(1, "1 frame"), (32, "32 frames"), (512, "512 frames")] {
        let words = vec![Word::default(); addr::length(FRAMES)];
        let blocks = vec![Block::EMPTY; addr::length(FRAMES / 512)];
        let range = FrameRange::with_count(Hfn::new(0), FRAMES);
        let mut pool = Ownership::new(range, 0, words, blocks, &mut Nothing).unwrap();
        let epochs = Epochs::<CPUS>::new();
        (0..CPUS).for_each(|cpu| epochs.enter(cpu));
        // The first call sets a block aside.
        pool.allocate(Owner::Task(1), &epochs, &mut Nothing).unwrap_err();
        flush(&epochs);
        group.throughput(Throughput::Elements(batch));
        group.bench_function(name, |bencher| {
            let mut taken = Vec::with_capacity(addr::length(batch));
            bencher.iter(|| {
                for _ in 0..batch {
                    taken.push(pool.allocate(Owner::Task(1), &epochs, &mut Nothing).unwrap());
                }
                for frame in taken.drain(..) {
                    pool.free(frame, Owner::Task(1), &epochs, &mut Nothing).unwrap();
                }
                flush(&epochs);
                pool.reclaim(&epochs, u32::MAX, |_| {});
            });
        });
    }
}

criterion_group!(benches, ownership);
criterion_main!(benches);
