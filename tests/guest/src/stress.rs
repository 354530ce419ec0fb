//! Job `stress`: keeps every CPU busy with what kernels do most, and checks that nothing is lost.
//!
//! Per CPU one process of each kind in [`KINDS`], all pinned; one more process toggles a static
//! key, so that the kernel patches its own text all the time.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::mman::ProtFlags;
use nix::unistd::{pipe, read, write};
use serde_json::{Map, json};

use crate::console::Console;
use crate::sys::{self, Pages, Program};
use crate::{keeper, probe};

const SCHEDSTATS: &str = "/proc/sys/kernel/sched_schedstats";
const TOGGLE_EVERY: Duration = Duration::from_millis(300);
const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

/// One round of work; the number tells this process from the others.
type Round = fn(usize) -> Result<()>;

/// What runs on every CPU, by the name of its counter.
const KINDS: [(&str, Round); 5] = [
    ("forks", |_| sys::fork_and_exec(Program::Own)),
    ("pipes", pipe_round),
    ("maps", map_round),
    ("files", file_round),
    ("registers", |number| keeper::check(number.to_le_bytes()[0])),
];
/// Counter of the static key's changes.
const TOGGLES: usize = KINDS.len();
/// Counter of the checks by the probe module.
const STATES: usize = TOGGLES + 1;
const COUNTERS: usize = STATES + 1;

/// Counters that all processes share.
type Counts = [AtomicU64; COUNTERS];

/// Runs the job.
pub fn run(console: &Console, cpus: usize, seconds: u64) -> Result<()> {
    let has_module = probe::has_module();
    if has_module {
        probe::load_module()?;
    }
    let memory = Pages::map_shared(1)?;
    // SAFETY: the page is zeroed, aligned, longer than the counters, and lives until the end of
    // this function; every process reaches them as atomics only.
    let counts: &Counts = unsafe { memory.start().cast().as_ref() };
    let (errors, errors_in) = pipe()?;
    let deadline = Instant::now() + Duration::from_secs(seconds);

    let mut children = Vec::new();
    for cpu in 0..cpus {
        for (kind, (name, round)) in KINDS.into_iter().enumerate() {
            children.push(sys::child(&errors_in, || {
                sys::pin(cpu)?;
                while Instant::now() < deadline {
                    round(cpu).with_context(|| format!("{name} on CPU {cpu}"))?;
                    counts[kind].fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })?);
        }
    }
    children.push(sys::child(&errors_in, || toggle(counts, cpus, deadline, has_module))?);

    drop(errors_in);
    let mut messages = String::new();
    File::from(errors).read_to_string(&mut messages)?;
    for child in children {
        if let Err(error) = sys::wait(child) {
            messages += &format!("{error}\n");
        }
    }

    let names = KINDS.iter().map(|(name, _)| *name).chain(["toggles", "states"]);
    let mut report = Map::new();
    report.insert("ok".to_owned(), json!(messages.is_empty()));
    report.insert("seconds".to_owned(), json!(seconds));
    for (name, count) in names.zip(counts) {
        report.insert(name.to_owned(), json!(count.load(Ordering::Relaxed)));
    }
    report.insert("errors".to_owned(), json!(messages.lines().collect::<Vec<_>>()));
    console.report("stress", &report.into())
}

/// Bounces 200 bytes between two processes on one CPU.
fn pipe_round(_: usize) -> Result<()> {
    ping_pong(200)
}

/// `rounds` bytes to another process and back.
pub fn ping_pong(rounds: usize) -> Result<()> {
    let (here_in, there_out) = pipe()?;
    let (there_in, here_out) = pipe()?;
    let (errors, errors_in): (OwnedFd, OwnedFd) = pipe()?;
    let partner = sys::child(&errors_in, || {
        let mut byte = [0];
        for _ in 0..rounds {
            ensure!(read(&there_in, &mut byte)? == 1, "the pipe ended early");
            byte[0] = !byte[0];
            write(&there_out, &byte)?;
        }
        Ok(())
    })?;
    for round in 0..rounds {
        let sent = round.to_le_bytes()[0];
        let mut byte = [sent];
        write(&here_out, &byte)?;
        ensure!(read(&here_in, &mut byte)? == 1, "the partner ended early");
        ensure!(byte[0] == !sent, "sent {sent:#x}, got {:#x} back", byte[0]);
    }
    drop(errors_in);
    let mut message = String::new();
    File::from(errors).read_to_string(&mut message)?;
    ensure!(message.is_empty(), "partner: {message}");
    sys::wait(partner)
}

/// Maps, touches, protects, reads and unmaps 64 pages.
fn map_round(number: usize) -> Result<()> {
    const PAGES: usize = 64;
    let mut pages = Pages::map(PAGES, READ_WRITE)?;
    for page in 0..PAGES {
        pages.touch(page, (page ^ number).to_le_bytes()[0]);
    }
    pages.protect(ProtFlags::PROT_READ)?;
    for page in 0..PAGES {
        let (expected, found) = ((page ^ number).to_le_bytes()[0], pages.peek(page));
        ensure!(found == expected, "page {page}: wrote {expected:#x}, read {found:#x}");
    }
    pages.protect(READ_WRITE)?;
    pages.touch(0, 0);
    Ok(())
}

/// Writes a file, copies it, compares, deletes both.
fn file_round(number: usize) -> Result<()> {
    let content: Vec<u8> =
        (0..512 * 1024_usize).map(|i| ((i / 7) ^ number).to_le_bytes()[0]).collect();
    let (from, to) = (format!("/tmp/from-{number}"), format!("/tmp/to-{number}"));
    fs::write(&from, &content)?;
    fs::copy(&from, &to)?;
    ensure!(fs::read(&to)? == content, "the copy differs");
    fs::remove_file(&from)?;
    fs::remove_file(&to)?;
    Ok(())
}

/// Toggles a static key and lets the probe module check each CPU's registers in turn.
fn toggle(counts: &Counts, cpus: usize, deadline: Instant, has_module: bool) -> Result<()> {
    let has_key = Path::new(SCHEDSTATS).exists();
    for round in 0_usize.. {
        if Instant::now() >= deadline {
            break;
        }
        sys::pin(round % cpus)?;
        if has_key {
            fs::write(SCHEDSTATS, if round % 2 == 0 { "1" } else { "0" })?;
            counts[TOGGLES].fetch_add(1, Ordering::Relaxed);
        }
        if has_module {
            let state = fs::read_to_string(probe::STATE)?;
            ensure!(state.starts_with("state\tkept\t"), "CPU {}: {state}", round % cpus);
            counts[STATES].fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(TOGGLE_EVERY);
    }
    Ok(())
}
