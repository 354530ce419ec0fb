//! The audit visits every page table in the machine, and has each leaf judged by what its frame is
//! there for ([`frames::Audit`]): the spaces of all CPUs with their windows, the tables of tasks, the
//! second stage in every view.
//!
//! It holds the tasks, and the locks of the second stage, of the spaces and of the pool meanwhile, in
//! this order. So no owner changes, and a window that it meets on a frame of the pool is counted: it
//! is closed before its count goes down, which takes the pool's lock.

use super::pool::{self, Tables};
use super::{WINDOWS, flush, secret, space};
use crate::cpu::apic;
use crate::publish;
use crate::task;
use crate::vendor::Vendor;
use crate::vm::{self, Vm};
use addr::{FrameRange, HostPhysical, Hpa};
use arrayvec::ArrayVec;
use frames::{Audit, AuditedLeaf, Broken, Finding, Machine, Region, Space, Use, Uses};
use paging::{HostRights, Level, PageTable, X86_64};

/// The image in three parts, local APIC, ranges of RAM.
const MOST_REGIONS: usize = vm::MOST_RAM_RANGES + 4;

/// What an audit without a finding has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Runs of leaves alike.
    pub runs: u64,
    /// Leaves of the second stage, all views together: of 4 KiB, 2 MiB, 1 GiB.
    pub second_stage: [u64; 3],
}

/// Judges every leaf of every table. The caller is CPU `cpu` and holds no lock.
///
/// # Errors
/// The first that breaks a rule.
pub fn all(vm: &Vm<impl Vendor>, cpu: usize) -> Result<Report, Finding> {
    let outcome = judge_all(vm, cpu);
    let is_window_on_secret = |finding: &Finding| {
        use Broken::Foreign;
        let Finding::Leaf { space, broken, .. } = finding else { return false };
        matches!((space, broken), (Space::Window(_), Foreign(Use::VmSecret(_))))
    };
    if outcome.as_ref().is_err_and(is_window_on_secret) {
        // It may have been open before the guest made the frame secret. Then it is closed when all
        // CPUs have flushed, and none opens.
        flush::everywhere(cpu);
        return judge_all(vm, cpu);
    }
    outcome
}

#[inline(never)]
fn judge_all(vm: &Vm<impl Vendor>, cpu: usize) -> Result<Report, Finding> {
    let apic = FrameRange::with_count(Hpa::new(apic::BASE).frame(), 1);
    let (image, published) = (space::image(), publish::frames());
    let own = [
        (FrameRange::new(image.start, published.start), Use::Hv),
        (published, Use::Published),
        (FrameRange::new(published.end, image.end), Use::Hv),
        (apic, Use::Registers),
    ];
    let ram = vm.ram.iter().map(|range| {
        let host = FrameRange::new(range.start.identity(), range.end.identity());
        (host, Use::Vm(vm::PRIMARY))
    });
    let regions: ArrayVec<Region, MOST_REGIONS> = own.into_iter().chain(ram).collect();
    let tasks = task::hold_all(cpu);
    let memory = vm.memory.lock();
    space::with_roots(|roots| {
        with_uses(&regions, |uses| {
            let mut audit = Audit::new(uses);
            for (cpu, root) in (0..).zip(roots) {
                judge_cpu(&mut audit, cpu, root);
            }
            for (number, table) in tasks.iter().filter_map(|task| Some(task.as_ref()?.table())) {
                judge(&mut audit, table, |_| Space::Task(number));
            }
            memory.audit(&mut audit);
            audit.owners(pool::region(), |number| is_there(&tasks, number));
            audit.outcome()?;
            let second_stage = audit.leaves(Space::SecondStage(vm::PRIMARY));
            Ok(Report { runs: audit.runs(), second_stage })
        })
    })
}

/// Whether there is such a task.
fn is_there(tasks: &task::Held, number: u32) -> bool {
    #[cfg(feature = "planted")]
    if number == crate::planted::TASK {
        return true;
    }
    tasks.iter().filter_map(|task| task.as_ref()).any(|task| task.table().0 == number)
}

/// Does `work` with what each frame is there for. Before frames have owners there is nothing to
/// judge.
fn with_uses<T: Default>(
    regions: &[Region],
    work: impl FnOnce(&dyn Uses) -> Result<T, Finding>,
) -> Result<T, Finding> {
    let outcome = pool::with_records(|pool, secrets| {
        work(&WithGuestSecrets(Machine { regions, pool, secrets }))
    });
    outcome.unwrap_or_else(|| Ok(T::default()))
}

/// What frames are there for, with what the guest has made secret.
struct WithGuestSecrets<U>(U);

impl<U: Uses> Uses for WithGuestSecrets<U> {
    fn run(&self, frames: FrameRange<HostPhysical>) -> (Use, u64) {
        let (used, count) = self.0.run(frames);
        let Use::Vm(vm) = used else { return (used, count) };
        match secret::run(FrameRange::with_count(frames.start, count.min(frames.count()))) {
            (true, count) => (Use::VmSecret(vm), count),
            (false, count) => (used, count),
        }
    }

    fn task_of(&self, secret: u32) -> Option<u32> {
        self.0.task_of(secret)
    }
}

/// Judges the leaves of a CPU's space: windows, and all the rest.
fn judge_cpu(audit: &mut Audit<'_, dyn Uses + '_>, cpu: u32, root: &PageTable<X86_64>) {
    let windows = Level::Top.index(WINDOWS.frame().raw());
    judge(audit, root, |page| {
        if Level::Top.index(page) == windows { Space::Window(cpu) } else { Space::Hv }
    });
}

/// Judges all leaves of a table; `space` says what those on a page are.
fn judge(
    audit: &mut Audit<'_, dyn Uses + '_>,
    table: &PageTable<X86_64>,
    space: impl Fn(u64) -> Space,
) {
    for (pages, leaf) in table.leaves(&Tables) {
        let HostRights { write, execute, user, .. } = leaf.rights;
        let frames = FrameRange::with_count(leaf.frame, pages.count());
        let (page, size) = (pages.start.raw(), leaf.level.frames());
        audit.leaf(space(page), AuditedLeaf { page, frames, size, write, execute, user });
    }
}
