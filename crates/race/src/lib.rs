//! For benches: two ways to do the same are timed one after the other by criterion, and the ratio
//! is printed.
//!
//! The ratio is that of the fastest samples, which say most on a machine that does other things
//! besides.

#![forbid(unsafe_code)]

use criterion::{Criterion, Throughput};
use std::time::{Duration, Instant};

/// What is compared, in which unit of work.
pub struct Race<'a> {
    /// Name of the work.
    pub name: String,
    /// Pieces of work in one run, such as pages.
    pub pieces: u64,
    /// What a piece is called.
    pub piece: &'a str,
    /// Samples, at least 10.
    pub samples: usize,
}

impl Race<'_> {
    /// Times our way and then the other, each by a name, a maker of the state that each run starts
    /// from, and the run itself, of which alone the time counts. Prints the ratio, unless the command
    /// line left one out.
    pub fn run<A, B>(
        &self,
        criterion: &mut Criterion,
        (name, make, run): (&str, impl FnMut() -> A, impl FnMut(&mut A)),
        (other, make_other, run_other): (&str, impl FnMut() -> B, impl FnMut(&mut B)),
    ) {
        let ours = self.time(criterion, name, make, run);
        let theirs = self.time(criterion, other, make_other, run_other);
        let (Some(ours), Some(theirs)) = (ours, theirs) else { return };
        let Self { name: work, piece, .. } = self;
        println!(
            "{work}: {:.1} times faster than {other} ({ours:.2} and {theirs:.2} ns a {piece}, fastest samples)\n",
            theirs / ours
        );
    }

    /// Times one way alone.
    pub fn lap<S>(
        &self,
        criterion: &mut Criterion,
        name: &str,
        make: impl FnMut() -> S,
        run: impl FnMut(&mut S),
    ) {
        if let Some(time) = self.time(criterion, name, make, run) {
            println!("{}, {name}: {time:.2} ns a {}, fastest sample\n", self.name, self.piece);
        }
    }

    /// Nanoseconds a piece in the fastest sample; `None` if there was none.
    fn time<S>(
        &self,
        criterion: &mut Criterion,
        name: &str,
        mut make: impl FnMut() -> S,
        mut run: impl FnMut(&mut S),
    ) -> Option<f64> {
        let mut fastest = f64::INFINITY;
        let mut group = criterion.benchmark_group(&self.name);
        group.throughput(Throughput::Elements(self.pieces)).sample_size(self.samples);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|runs| {
                let mut total = Duration::ZERO;
                for _ in 0..runs {
                    let mut state = make();
                    let start = Instant::now();
                    run(&mut state);
                    total += start.elapsed();
                }
                fastest = fastest.min(total.as_secs_f64() / runs as f64);
                total
            });
        });
        fastest.is_finite().then_some(fastest * 1e9 / self.pieces as f64)
    }
}
