//! Job `ret2dir`: a bug that is planted in the test build of the hypervisor reads, writes and jumps
//! where this program says, on every CPU, at every place where memory that is not the hypervisor's
//! could be: the direct map, fixed offsets from the physical address, every window. What was reached
//! is reported by scenario. In some it must be: there the protection is switched off, or the memory is
//! the hypervisor's own.

use crate::console::Console;
use crate::counters::Counters;
use crate::sys::{self, PAGE};
use abi::planted::{DIRECT_MAP, Kind, PLANTED, REFUSED, Request, WINDOWS, WRITTEN};
use anyhow::{Context as _, Result, bail, ensure};
use hypercall::{Audit, Ravelin};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use serde_json::json;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;

/// What the pages hold. Its first byte is the instruction RET.
const MARKER: u64 = 0x1dea_5eed_cafe_00c3;
/// Bytes of a large page.
const LARGE: usize = 2 << 20;
/// Windows, and places where frames are zeroed.
const PLACES: u64 = 1024;
/// Where Linux has its direct map, and other offsets that one may try.
const OFFSETS: [u64; 4] = [DIRECT_MAP, 0, 0xffff_8880_0000_0000, WINDOWS];
/// Secrets that are made and ended in a row.
const CHURN: usize = 20;

/// The planted bug.
#[derive(Clone, Copy)]
pub struct Planted(Ravelin);

impl Planted {
    /// Finds out whether it is there.
    pub fn detect(ravelin: Ravelin) -> Option<Self> {
        let planted = Self(ravelin);
        (planted.ask(Request::Held, 0) == 0).then_some(planted)
    }

    fn ask(self, request: Request, argument: u64) -> u64 {
        self.0.call_with(PLANTED, request as u64, argument)
    }

    /// Waits until another CPU holds or watches an address.
    fn held(self) -> Result<u64> {
        for _ in 0..10_000_000 {
            match self.ask(Request::Held, 0) {
                0 => {}
                address => return Ok(address),
            }
        }
        bail!("the other CPU holds nothing")
    }
}

/// Attempts by scenario, and those that reached something.
#[derive(Default)]
struct Score(BTreeMap<&'static str, [u64; 2]>);

impl Score {
    fn note(&mut self, scenario: &'static str, reached: bool) {
        let [tried, reaching] = self.0.entry(scenario).or_default();
        *tried += 1;
        *reaching += u64::from(reached);
    }
}

/// A page of this program.
struct Page {
    start: NonNull<u64>,
    size: usize,
}

impl Page {
    /// A page of 4 KiB, or of 2 MiB.
    fn new(size: usize) -> Result<Self> {
        let length = NonZeroUsize::new(2 * size).context("no size")?;
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let mapping = unsafe { mmap_anonymous(None, length, rights, MapFlags::MAP_PRIVATE) }?;
        let advice =
            if size == PAGE { MmapAdvise::MADV_NOHUGEPAGE } else { MmapAdvise::MADV_HUGEPAGE };
        // SAFETY: the range is ours; the advice changes page sizes only.
        unsafe { madvise(mapping, length.get(), advice) }?;
        let offset = mapping.as_ptr().align_offset(size);
        // SAFETY: at most `size` bytes into a mapping of twice that; a page is aligned for u64.
        let start = unsafe { mapping.byte_add(offset) }.cast();
        let mut page = Self { start, size };
        page.set(MARKER);
        Ok(page)
    }

    fn set(&mut self, value: u64) {
        // SAFETY: the first bytes of the page, which is ours.
        unsafe { self.start.write_volatile(value) };
    }

    fn get(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.start.read_volatile() }
    }

    /// Its physical address.
    fn physical(&self) -> Result<u64> {
        let pagemap = std::fs::File::open("/proc/self/pagemap")?;
        let frame = |page: usize| -> Result<u64> {
            let number = (self.start.as_ptr().addr() / PAGE + page) as u64;
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, number * 8)?;
            let entry = u64::from_le_bytes(entry);
            ensure!(entry >> 63 == 1, "a page is not there");
            Ok(entry & ((1 << 55) - 1))
        };
        let first = frame(0)?;
        let last = self.size / PAGE - 1;
        let whole = self.size == PAGE || first.is_multiple_of(512) && frame(last)? == first + 511;
        ensure!(whole, "the kernel gave no page of {} bytes", self.size);
        Ok(first * PAGE as u64)
    }
}

/// Runs every scenario on every CPU.
pub fn run(console: &Console, counters: &Counters, cpus: usize) -> Result<()> {
    let planted = counters.planted().context("this hypervisor is not the test build")?;
    let mut score = Score::default();
    for cpu in 0..cpus {
        sys::pin(cpu)?;
        guest_pages(planted, &mut score, counters)?;
        own_frames(planted, &mut score, cpus, cpu)?;
    }
    if cpus > 1 {
        for cpu in 0..cpus {
            windows(planted, &mut score, cpu, (cpu + 1) % cpus)?;
            stale(planted, &mut score, cpu, (cpu + 1) % cpus)?;
        }
    }
    for (scenario, [tried, reached]) in &score.0 {
        let object = json!({"scenario": scenario, "tried": tried, "reached": reached});
        console.report("ret2dir", &object)?;
    }
    let before = planted.ask(Request::Leaves, 0);
    for _ in 0..CHURN {
        take(planted, Kind::Secret)?;
        planted.ask(Request::GiveBack, Kind::Secret as u64);
    }
    let after = planted.ask(Request::Leaves, 0);
    let leaves = |all: u64| json!({"large": all & 0xffff, "small": all >> 16 & 0xffff});
    console.report("leaves", &json!({"before": leaves(before), "after": leaves(after)}))
}

/// Reads, writes and jumps everywhere that `physical` could be.
fn everywhere(planted: Planted, score: &mut Score, scenario: &'static str, physical: u64) {
    for address in OFFSETS.map(|offset| offset.wrapping_add(physical)) {
        for request in [Request::Read, Request::Write, Request::Jump] {
            score.note(scenario, planted.ask(request, address) != REFUSED);
        }
    }
    for place in 0..PLACES {
        let address = WINDOWS + place * PAGE as u64;
        score.note(scenario, planted.ask(Request::Read, address) != REFUSED);
    }
}

/// A guest's pages, as they are; with a direct map that covers them; and after that.
fn guest_pages(planted: Planted, score: &mut Score, counters: &Counters) -> Result<()> {
    for (size, plain, covered, uncovered) in [
        (PAGE, "guest, 4 KiB", "guest, 4 KiB, covered", "guest, 4 KiB, uncovered"),
        (LARGE, "guest, 2 MiB", "guest, 2 MiB, covered", "guest, 2 MiB, uncovered"),
    ] {
        let mut page = Page::new(size)?;
        let physical = page.physical()?;
        everywhere(planted, score, plain, physical);
        ensure!(page.get() == MARKER, "a refused write has changed the page");

        ensure!(planted.ask(Request::Cover, physical) == 0, "the direct map covers it already");
        let address = DIRECT_MAP + physical;
        score.note(covered, planted.ask(Request::Read, address) == MARKER);
        score.note(covered, planted.ask(Request::Jump, address) == 0);
        score.note(covered, planted.ask(Request::Write, address) == 0 && page.get() == WRITTEN);
        score.note("audit, covered", counters.audit() == Some(Audit::Failed));
        page.set(MARKER);
        planted.ask(Request::Uncover, physical);
        everywhere(planted, score, uncovered, physical);
        ensure!(page.get() == MARKER, "a refused write has changed the page");
    }
    Ok(())
}

fn take(planted: Planted, kind: Kind) -> Result<u64> {
    let frame = planted.ask(Request::Take, kind as u64);
    ensure!(frame != REFUSED, "no memory for {kind:?}");
    Ok(frame * PAGE as u64)
}

/// Frames of the pool: a task's, a secret's, freed ones, and the hypervisor's own.
fn own_frames(planted: Planted, score: &mut Score, cpus: usize, taker: usize) -> Result<()> {
    for (kind, owned, freed) in [
        (Kind::Task, "task frame", "task frame, freed"),
        (Kind::Secret, "secret, 2 MiB", "secret, 2 MiB, freed: data"),
        (Kind::Hv, "the hypervisor's own", "the hypervisor's own, freed"),
    ] {
        sys::pin(taker)?;
        let physical = take(planted, kind)?;
        for cpu in 0..cpus {
            sys::pin(cpu)?;
            match kind {
                Kind::Hv => {
                    let read = planted.ask(Request::Read, DIRECT_MAP + physical);
                    score.note(owned, read != REFUSED);
                }
                Kind::Task => everywhere(planted, score, owned, physical),
                Kind::Secret => {
                    everywhere(planted, score, owned, physical);
                    everywhere(planted, score, owned, physical + (LARGE - PAGE) as u64);
                }
            }
        }
        sys::pin(taker)?;
        ensure!(planted.ask(Request::GiveBack, kind as u64) == 0, "{kind:?} was not given back");
        for cpu in 0..cpus {
            sys::pin(cpu)?;
            let read = planted.ask(Request::Read, DIRECT_MAP + physical);
            match kind {
                Kind::Task => score.note(freed, read != REFUSED),
                // It is zeroed, and the hypervisor's to give.
                Kind::Secret => score.note(freed, read != 0),
                Kind::Hv => {}
            }
        }
        planted.ask(Request::Tidy, 0);
    }
    Ok(())
}

/// Runs `work` in a child on `cpu`, and meanwhile `other`, here. The answer of `work`.
fn beside(
    cpu: usize,
    work: impl FnOnce() -> u8,
    other: impl FnOnce() -> Result<()>,
) -> Result<i32> {
    // SAFETY: there is one thread, so the child inherits no lock that another one holds.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = sys::pin(cpu).map_or(99, |()| work());
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(i32::from(code)) }
        }
        ForkResult::Parent { child } => {
            other()?;
            match waitpid(child, None)? {
                WaitStatus::Exited(_, code) => Ok(code),
                status => bail!("a process ended with {status:?}"),
            }
        }
    }
}

/// A window that one CPU has open, and another tries to use.
fn windows(planted: Planted, score: &mut Score, holder: usize, other: usize) -> Result<()> {
    sys::pin(other)?;
    let page = Page::new(PAGE)?;
    let physical = page.physical()?;
    let hold = || u8::from(planted.ask(Request::Hold, physical / PAGE as u64) != MARKER);
    let code = beside(holder, hold, || {
        let window = planted.held()?;
        for request in [Request::Read, Request::Write, Request::Jump] {
            score.note("window on another CPU", planted.ask(request, window) != REFUSED);
        }
        everywhere(planted, score, "window on another CPU", physical);
        planted.ask(Request::Release, 0);
        Ok(())
    })?;
    score.note("window on its own CPU", code == 0);
    ensure!(page.get() == MARKER, "a refused write has changed the page");
    Ok(())
}

/// A CPU that has a leaf of the direct map in its TLB while another gives the frame to a task.
fn stale(planted: Planted, score: &mut Score, watcher: usize, taker: usize) -> Result<()> {
    const STALE: u8 = 1;
    for (deaf, scenario) in [(0, "leaf in a TLB"), (1, "leaf in a TLB, not flushed")] {
        sys::pin(taker)?;
        // Afterwards it is in the direct map, in the block that is set aside next.
        let physical = take(planted, Kind::Task)?;
        planted.ask(Request::GiveBack, Kind::Task as u64);
        planted.ask(Request::Tidy, 0);
        planted.ask(Request::Deaf, deaf);
        let watch = || {
            let read = planted.ask(Request::Watch, DIRECT_MAP + physical);
            if read == REFUSED { 0 } else { STALE }
        };
        let mut taken = Ok(0);
        let code = beside(watcher, watch, || {
            planted.held()?;
            taken = take(planted, Kind::Task);
            planted.ask(Request::Release, 0);
            Ok(())
        })?;
        planted.ask(Request::Deaf, 0);
        planted.ask(Request::GiveBack, Kind::Task as u64);
        planted.ask(Request::Tidy, 0);
        ensure!(taken? / LARGE as u64 == physical / LARGE as u64, "another block was set aside");
        score.note(scenario, code == i32::from(STALE));
    }
    Ok(())
}
