//! Job `bench`: loops whose executed instructions, time and exits are measured.
//!
//! Under QEMU's `-icount shift=0` the time-stamp counter counts executed instructions. Each loop
//! runs once unmeasured, a twentieth of the rounds, so that caches and tables are warm, and then in
//! batches, of which the one with the fewest instructions counts: in the others the kernel did some
//! work of its own besides.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::time::Instant;

use anyhow::Result;
use nix::sys::mman::ProtFlags;
use serde_json::json;

use crate::console::Console;
use crate::counters::{self, Counters};
use crate::stress::ping_pong;
use crate::sys::{self, Pages, Program};

const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

/// A loop: name, rounds, and a function that runs so many rounds.
type Loop = (&'static str, usize, fn(usize) -> Result<()>);

const LOOPS: [Loop; 8] = [
    ("syscall", 200_000, system_calls),
    ("fork-exec", 200, |rounds| fork_and_execs(rounds, Program::Leave)),
    ("fork-exec-libc", 200, |rounds| fork_and_execs(rounds, Program::Own)),
    ("page-touch", 16_384, page_touches),
    ("pipe", 10_000, ping_pong),
    ("mprotect", 20_000, protections),
    ("file-copy", 512, file_copy),
    ("cpuid", 20_000, cpuids),
];

const BATCHES: usize = 5;

/// Runs the job; `quick` does a tenth of the rounds.
pub fn run(console: &Console, counters: &Counters, quick: bool) -> Result<()> {
    sys::pin(0)?;
    for (name, rounds, work) in LOOPS {
        let rounds = if quick { rounds / 10 } else { rounds };
        work(rounds.div_ceil(20))?;

        let rounds = rounds / BATCHES;
        let mut best = None;
        for _ in 0..BATCHES {
            let exits = counters.snapshot();
            let time = Instant::now();
            let ticks = counters::ticks();
            work(rounds)?;
            let ticks = counters::ticks().wrapping_sub(ticks);
            let time = time.elapsed();
            let exits = counters.exits_since(&exits);
            if best.as_ref().is_none_or(|(fewest, _, _)| ticks < *fewest) {
                best = Some((ticks, time, exits));
            }
        }
        let Some((ticks, time, exits)) = best else { continue };

        console.report(
            "bench",
            &json!({
                "name": name,
                "iterations": rounds,
                "ticks": ticks,
                "nanoseconds": u64::try_from(time.as_nanos())?,
                "exits": exits,
            }),
        )?;
    }
    Ok(())
}

fn system_calls(rounds: usize) -> Result<()> {
    for _ in 0..rounds {
        nix::unistd::getppid();
    }
    Ok(())
}

fn fork_and_execs(rounds: usize, program: Program) -> Result<()> {
    for _ in 0..rounds {
        sys::fork_and_exec(program)?;
    }
    Ok(())
}

/// One page fault per round, on fresh memory.
fn page_touches(rounds: usize) -> Result<()> {
    let mut pages = Pages::map(rounds, READ_WRITE)?;
    for page in 0..rounds {
        pages.touch(page, 1);
    }
    Ok(())
}

fn protections(rounds: usize) -> Result<()> {
    let mut pages = Pages::map(1, READ_WRITE)?;
    pages.touch(0, 1);
    for round in 0..rounds {
        pages.protect(if round % 2 == 0 { ProtFlags::PROT_READ } else { READ_WRITE })?;
    }
    Ok(())
}

/// Writes and copies a file in memory; 64 KiB per round.
fn file_copy(rounds: usize) -> Result<()> {
    let (from, to) = ("/tmp/bench-from", "/tmp/bench-to");
    let mut block = vec![0x5a; 64 * 1024];
    let mut file = File::create(from)?;
    for _ in 0..rounds {
        file.write_all(&block)?;
    }
    let (mut source, mut target) = (File::open(from)?, File::create(to)?);
    for _ in 0..rounds {
        source.read_exact(&mut block)?;
        target.write_all(&block)?;
    }
    std::fs::remove_file(from)?;
    std::fs::remove_file(to)?;
    Ok(())
}

/// Exits only where CPUID is intercepted.
fn cpuids(rounds: usize) -> Result<()> {
    for _ in 0..rounds {
        std::hint::black_box(core::arch::x86_64::__cpuid(0));
    }
    Ok(())
}
