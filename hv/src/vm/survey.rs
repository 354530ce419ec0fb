//! The walk over the kernel half of the guest's page tables, and what it finds.

use super::memory::Memory;
use super::{KernelPlace, guest};
use crate::report;
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use abi::event::{Alias, RecordKind};
use abi::manifest::Span;
use addr::{FrameRange, Gfn, Gpa, GuestPhysical, Gva};
use arrayvec::ArrayVec;
use integrity::Rights;
use integrity::promote::MODULE_RANGE;
use integrity::rights::{Counters, Totals};
use paging::guest::{Buffers, GuestLeaf, GuestRights, visit_kernel_half};
use zerocopy::IntoBytes;

/// Most table pages of a guest's kernel half that are read: those of 32 GiB in 4 KiB leaves.
const TABLE_BUDGET: u64 = 16384;
/// Where a visit of the whole kernel half starts.
const EVERYTHING: Gva = Gva::new(0);
/// Most conflicting frames that are reported one by one.
const ALIASES_SHOWN: usize = 16;

/// Runs of frames.
pub type Runs = ArrayVec<FrameRange<GuestPhysical>, 64>;
/// Runs of frames that were allotted one by one.
pub type Scattered = ArrayVec<FrameRange<GuestPhysical>, 256>;

/// What the lock wants to know of a survey.
pub struct Findings {
    /// Leaves visited.
    pub leaves: u64,
    /// Frames by right.
    pub totals: Totals,
    /// Frames of the image's initialisation code that are still executable.
    pub init_text: Runs,
    /// Frames of the image's read-only data that no alias can write.
    pub rodata: Runs,
    /// Frames that are executable in the module range and that no alias can write.
    pub generated: Scattered,
}

/// What the guest's own tables allow a supervisor.
pub fn rights_of(rights: GuestRights) -> Rights {
    let mut all = Rights::READ;
    all.set(Rights::WRITE, rights.write);
    all.set(Rights::EXECUTE, rights.execute);
    all
}

/// Shows every leaf of the kernel half of the current tables, from `start` on; gives their number.
///
/// # Errors
/// The tables are damaged or too many.
fn visit<V: Vendor>(
    vcpu: &Vcpu<V>,
    buffers: &mut Buffers,
    start: Gva,
    mut leaf: impl FnMut(GuestLeaf),
) -> Result<u64, &'static str> {
    let levels = vcpu.paging_levels().ok_or("the guest has paging off")?;
    let mut leaves = 0;
    visit_kernel_half(
        Gpa::new(vcpu.control_register(3)),
        levels,
        start,
        TABLE_BUDGET,
        buffers,
        |table, entries| guest::read_table(vcpu.vm, &vcpu.windows, table, entries),
        |found| {
            leaves += found.count;
            leaf(found);
        },
    )
    .map_err(|_| "the guest's page tables are too many or linked in circles")?;
    Ok(leaves)
}

/// All rights that any alias in the kernel half of the current tables gives to a frame of `range`.
///
/// # Errors
/// As for [`visit`].
pub fn rights_over<V: Vendor>(
    vcpu: &Vcpu<V>,
    memory: &mut Memory<V>,
    range: FrameRange<GuestPhysical>,
) -> Result<Rights, &'static str> {
    let mut rights = Rights::empty();
    visit(vcpu, memory.buffers, EVERYTHING, |leaf| {
        let frames = leaf.frames();
        if frames.start < range.end && range.start < frames.end {
            rights |= rights_of(leaf.rights);
        }
    })?;
    Ok(rights)
}

/// Counts the rights of every frame over all aliases in the kernel half of the current tables, and names
/// conflicting frames on the event channel.
///
/// # Errors
/// As for [`visit`].
pub fn examine<V: Vendor>(
    vcpu: &Vcpu<V>,
    memory: &mut Memory<V>,
    kernel: KernelPlace,
) -> Result<Findings, &'static str> {
    let (buffers, mut counters) = memory.survey();
    let mut batch = counters.batch();
    let leaves = visit(vcpu, buffers, EVERYTHING, |leaf| {
        batch.map(leaf.frames(), rights_of(leaf.rights));
    })?;
    drop(batch);
    let header = vcpu.vm.manifest().header();
    let collective = |frame| counters.collective(frame);
    let mut generated = Scattered::new();
    visit(vcpu, buffers, Gva::new(MODULE_RANGE.start), |leaf| {
        if MODULE_RANGE.contains(&leaf.gva.raw()) && leaf.rights.execute && !leaf.rights.user {
            let unwritten = |frame| collective(frame).is_some_and(|rights| rights.writable == 0);
            add_runs(&mut generated, leaf.frames(), unwritten);
        }
    })?;
    let findings = Findings {
        leaves,
        totals: counters.totals(),
        init_text: runs_of(image_frames(kernel, header.init_text), |frame| {
            collective(frame).is_some_and(|rights| rights.executable > 0)
        }),
        rodata: runs_of(image_frames(kernel, header.rodata), |frame| {
            collective(frame).is_some_and(|rights| rights.readable > 0 && rights.writable == 0)
        }),
        generated,
    };
    if findings.totals.conflicting > 0 {
        report_conflicts(&counters);
    }
    Ok(findings)
}

/// The frames of a span of the kernel image.
pub fn image_frames(kernel: KernelPlace, span: Span) -> FrameRange<GuestPhysical> {
    FrameRange::covering(kernel.gpa.plus(u64::from(span.start)), u64::from(span.length()))
}

/// Runs of frames that satisfy `wanted`; what exceeds the capacity is left out.
fn runs_of(range: FrameRange<GuestPhysical>, wanted: impl Fn(Gfn) -> bool) -> Runs {
    let mut runs = Runs::new();
    add_runs(&mut runs, range, wanted);
    runs
}

/// Adds those of `range`.
fn add_runs<const MOST: usize>(
    runs: &mut ArrayVec<FrameRange<GuestPhysical>, MOST>,
    range: FrameRange<GuestPhysical>,
    wanted: impl Fn(Gfn) -> bool,
) {
    for frame in range.iter().filter(|frame| wanted(*frame)) {
        match runs.last_mut() {
            Some(last) if last.end == frame => last.end = frame.plus(1),
            _ => drop(runs.try_push(FrameRange::with_count(frame, 1))),
        }
    }
}

fn report_conflicts(counters: &Counters<'_>) {
    for (frame, rights) in counters.conflicts().take(ALIASES_SHOWN) {
        let alias = Alias {
            gpa: frame.start().raw(),
            readable: rights.readable,
            writable: rights.writable,
            executable: rights.executable,
            reserved: [0; 5],
        };
        report::record(
            RecordKind::Alias,
            alias.as_bytes(),
            format_args!("frame {:#x} is writable and executable", alias.gpa),
        );
    }
}
