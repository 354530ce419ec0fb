//! A task that takes memory, touches it and gives it back, and says what that takes: ticks of the
//! time-stamp counter per frame, which under `xtask bench` are instructions.

#![no_std]
#![no_main]
#![deny(unsafe_code)]

use abi::task::{CallError, Info};
use core::hint::black_box;
use task_rt::{Mapping, Secret, log, ticks};

task_rt::main!(run);

/// Where the memory is mapped.
const ADDRESS: u64 = 2 << 30;
const PAGE: usize = 4096;
/// Frames per call.
const BATCHES: [u64; 3] = [1, 32, 512];
/// Frames that are taken in all, for each size of a batch.
const FRAMES: u64 = 2048;
const BLOCK: u64 = 2 << 20;

/// What is done with the memory meanwhile.
#[derive(Clone, Copy)]
enum Touch {
    /// One word of each page is written.
    Word,
    /// All of it is written and read.
    All,
}

fn run(info: &Info) -> u64 {
    match measure(info) {
        Ok(()) => 0,
        Err(error) => {
            log!("it cannot go on: {error:?}");
            1
        }
    }
}

fn measure(info: &Info) -> Result<(), CallError> {
    for (touch, name) in [(Touch::Word, "word"), (Touch::All, "all")] {
        for batch in BATCHES {
            // Once to have everything in place.
            rounds(batch, FRAMES / 8, touch)?;
            let start = ticks();
            rounds(batch, FRAMES, touch)?;
            let ticks = ticks().wrapping_sub(start);
            log!("churn {name} {batch} {FRAMES} {ticks}");
        }
    }
    let secret = u64::from(info.secret_quota) * BLOCK;
    for round in 0..8_u8 {
        let mut whole = Secret::new(secret)?;
        let mut mapped = whole.map(ADDRESS)?;
        mapped.iter_mut().step_by(PAGE).for_each(|byte| *byte = round);
    }
    log!("churn done");
    Ok(())
}

fn rounds(batch: u64, frames: u64, touch: Touch) -> Result<(), CallError> {
    for round in 0..frames / batch {
        let mut memory = Mapping::new(ADDRESS, batch)?;
        let value = round.to_le_bytes()[0];
        match touch {
            Touch::Word => memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = value),
            Touch::All => {
                memory.fill(value);
                let sum = memory.chunks_exact(8).fold(0, |sum: u64, word| {
                    sum.wrapping_add(word.first().copied().map_or(0, u64::from))
                });
                black_box(sum);
            }
        }
    }
    Ok(())
}
