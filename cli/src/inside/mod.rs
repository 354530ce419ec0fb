//! Commands for inside a guest: what the hypervisor under it says of itself.
//!
//! Whether it is there, and its counters, are known by a hypercall that every user may make. Events
//! and policy are in the published region, which is read through /dev/mem: root alone may, since
//! events hold addresses of the kernel.

mod clock;
mod events;
mod http;
mod metrics;
mod status;

pub use events::events;
pub use metrics::metrics;
pub use status::status;

use abi::hypercall::{Counter, UNKNOWN};
use anyhow::Context;
use hypercall::Ravelin;
use published::{OpenError, Reader, Words};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use zerocopy::IntoBytes;

const MEMORY: &str = "/dev/mem";

/// The hypervisor under this guest.
///
/// # Errors
/// There is no Ravelin here.
fn detect() -> anyhow::Result<Ravelin> {
    Ravelin::detect()?
        .context("no Ravelin answers: this machine is not a guest of it (see `ravelin run`)")
}

/// The published region, as part of a file that shows physical memory.
struct Region {
    file: File,
    start: u64,
}

impl Words for Region {
    type Error = io::Error;

    fn load(&self, first: usize, words: &mut [u64]) -> io::Result<()> {
        let at = self.start + (first * size_of::<u64>()) as u64;
        // Linux copies out of /dev/mem in ascending order, aligned words at once
        // (`copy_from_kernel_nofault`).
        self.file.read_exact_at(words.as_mut_bytes(), at)
    }
}

/// Opens the published region.
///
/// # Errors
/// This Ravelin has none, or the kernel does not let this process read it; the message says why.
fn open(ravelin: Ravelin) -> anyhow::Result<Reader<Region>> {
    let start = ravelin.read(Counter::Published);
    anyhow::ensure!(
        start != UNKNOWN,
        "this Ravelin is older than this program: it publishes nothing"
    );
    let file = File::open(MEMORY).with_context(|| {
        format!(
            "the events are read through {MEMORY}, which is for root, and on a kernel in lockdown \
             (see /sys/kernel/security/lockdown) for nobody"
        )
    })?;
    Reader::open(Region { file, start }).map_err(|error| match error {
        OpenError::Unreadable(error) => anyhow::Error::new(error)
            .context(format!("{MEMORY} does not show the published region at {start:#x}")),
        other => anyhow::Error::new(other),
    })
}
