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
use integrity::rights::{Counters, Totals};
use paging::guest::{Buffers, GuestLeaf, GuestRights, visit_kernel_half};
use zerocopy::IntoBytes;

/// Most table pages of a guest's kernel half that are read: those of 32 GiB in 4 KiB leaves.
const TABLE_BUDGET: u64 = 16384;
/// Most conflicting frames that are reported one by one.
const ALIASES_SHOWN: usize = 16;

/// Result of a walk over the kernel half.
struct Survey<'a> {
    /// Aliases of every frame, by right.
    counters: Counters<'a>,
    /// Leaves visited.
    leaves: u64,
}

/// Runs of frames.
pub type Runs = ArrayVec<FrameRange<GuestPhysical>, 64>;

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
}

/// What the guest's own tables allow a supervisor.
pub fn rights_of(rights: GuestRights) -> Rights {
    let mut all = Rights::READ;
    all.set(Rights::WRITE, rights.write);
    all.set(Rights::EXECUTE, rights.execute);
    all
}

/// Shows every leaf of the kernel half of the current tables.
///
/// # Errors
/// The tables are damaged or too many.
fn visit<V: Vendor>(
    vcpu: &Vcpu<V>,
    buffers: &mut Buffers,
    mut leaf: impl FnMut(GuestLeaf),
) -> Result<u64, &'static str> {
    let levels = vcpu.paging_levels().ok_or("the guest has paging off")?;
    let mut leaves = 0;
    visit_kernel_half(
        Gpa::new(vcpu.control_register(3)),
        levels,
        Gva::new(0),
        TABLE_BUDGET,
        buffers,
        |table, entries| guest::read_table(vcpu.vm, &vcpu.windows, table, entries),
        |found| {
            leaves += 1;
            leaf(found);
        },
    )
    .map_err(|_| "the guest's page tables are too many or linked in circles")?;
    Ok(leaves)
}

fn frames_of(leaf: &GuestLeaf) -> FrameRange<GuestPhysical> {
    FrameRange::with_count(leaf.gpa.frame(), leaf.level.frames())
}

/// Counts the rights of every frame over all aliases in the kernel half of the current tables.
///
/// # Errors
/// As for [`visit`].
fn survey<'m, V: Vendor>(
    vcpu: &Vcpu<V>,
    memory: &'m mut Memory<V>,
) -> Result<Survey<'m>, &'static str> {
    let (buffers, mut counters) = memory.survey();
    let mut batch = counters.batch();
    let leaves = visit(vcpu, buffers, |leaf| batch.map(frames_of(&leaf), rights_of(leaf.rights)))?;
    drop(batch);
    Ok(Survey { counters, leaves })
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
    visit(vcpu, memory.buffers, |leaf| {
        let frames = frames_of(&leaf);
        if frames.start < range.end && range.start < frames.end {
            rights |= rights_of(leaf.rights);
        }
    })?;
    Ok(rights)
}

/// Surveys the kernel half and names conflicting frames on the event channel.
///
/// # Errors
/// As for [`survey`].
pub fn examine<V: Vendor>(
    vcpu: &Vcpu<V>,
    memory: &mut Memory<V>,
    kernel: KernelPlace,
) -> Result<Findings, &'static str> {
    let Survey { counters, leaves } = survey(vcpu, memory)?;
    let header = vcpu.vm.manifest.header();
    let collective = |frame| counters.collective(frame);
    let findings = Findings {
        leaves,
        totals: counters.totals(),
        init_text: runs_of(image_frames(kernel, header.init_text), |frame| {
            collective(frame).is_some_and(|rights| rights.executable > 0)
        }),
        rodata: runs_of(image_frames(kernel, header.rodata), |frame| {
            collective(frame).is_some_and(|rights| rights.readable > 0 && rights.writable == 0)
        }),
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
    for frame in range.iter().filter(|frame| wanted(*frame)) {
        match runs.last_mut() {
            Some(last) if last.end == frame => last.end = frame.plus(1),
            _ => drop(runs.try_push(FrameRange::with_count(frame, 1))),
        }
    }
    runs
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
