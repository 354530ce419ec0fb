//! The audit visits every page table in the machine, and has each leaf judged by what its frame is
//! there for ([`frames::Audit`]): the spaces of all CPUs with their windows, the tables of tasks, the
//! second stage in every view.
//!
//! It holds the tasks, and the locks of the second stage, of the spaces and of the pool meanwhile, in
//! this order. So no owner changes, and a window that it meets on a frame of the pool is counted: it is closed
//! before its count goes down, which takes the pool's lock.

use super::pool::{self, Tables};
use super::{WINDOWS, space};
use crate::cpu::apic;
use crate::publish;
use crate::task;
use crate::vendor::Vendor;
use crate::vm::{self, Vm};
use addr::{FrameRange, Hpa};
use arrayvec::ArrayVec;
use frames::{Audit, AuditedLeaf, Finding, Machine, Region, Space, Use, Uses};
use paging::{HostRights, Level, PageTable, X86_64};

/// Published region, image, local APIC, ranges of RAM.
const MOST_REGIONS: usize = vm::MOST_RAM_RANGES + 3;

/// What an audit without a finding has seen.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Runs of leaves alike.
    pub runs: u64,
    /// Leaves of the second stage, all views together: of 4 KiB, 2 MiB, 1 GiB.
    pub second_stage: [u64; 3],
}

/// Judges every leaf of every table; gives the first that breaks a rule. `None` before frames have
/// owners. The caller, CPU `cpu`, holds no lock.
#[inline(never)]
pub fn all(vm: &Vm<impl Vendor>, cpu: usize) -> Option<Result<Report, Finding>> {
    let apic = FrameRange::with_count(Hpa::new(apic::BASE).frame(), 1);
    let own =
        [(publish::frames(), Use::Published), (space::image(), Use::Hv), (apic, Use::Registers)];
    let ram = vm.ram.iter().map(|range| {
        let host = FrameRange::new(range.start.identity(), range.end.identity());
        (host, Use::Vm(vm::PRIMARY))
    });
    let regions: ArrayVec<Region, MOST_REGIONS> = own.into_iter().chain(ram).collect();
    let tasks = task::hold_all(cpu);
    let memory = vm.memory.lock();
    space::with_roots(|roots| {
        pool::with_records(|frames, secrets| {
            let machine = Machine { regions: &regions, pool: frames, secrets };
            let mut audit = Audit::new(&machine);
            for (cpu, root) in (0..).zip(roots) {
                judge_cpu(&mut audit, cpu, root);
            }
            for (number, table) in tasks.iter().filter_map(|task| Some(task.as_ref()?.table())) {
                judge(&mut audit, table, |_| Space::Task(number));
            }
            memory.audit(&mut audit);
            audit.outcome()?;
            let second_stage = audit.leaves(Space::SecondStage(vm::PRIMARY));
            Ok(Report { runs: audit.runs(), second_stage })
        })
    })
}

/// Judges the leaves of a CPU's space: windows, and all the rest.
fn judge_cpu(audit: &mut Audit<'_, impl Uses>, cpu: u32, root: &PageTable<X86_64>) {
    let windows = Level::Top.index(WINDOWS.frame().raw());
    judge(audit, root, |page| {
        if Level::Top.index(page) == windows { Space::Window(cpu) } else { Space::Hv }
    });
}

/// Judges all leaves of a table; `space` says what those on a page are.
fn judge(
    audit: &mut Audit<'_, impl Uses>,
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
