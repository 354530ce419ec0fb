//! The lock: from the first instruction at CPL 3 on, the kernel keeps its promises.
//!
//! All vCPUs are held while the kernel half of the guest's page tables is walked and the rights of
//! every frame are counted over all its aliases. Kernel text (by the manifest) is locked at once;
//! read-only data as soon as no alias can write it, which a kernel that starts user helpers early
//! may reach later. Anything that keeps the lock from being complete stops the machine: a kernel
//! that only seems protected is worse than one that does not run.

use super::memory::Memory;
use super::promote::rights_of;
use super::{KernelPlace, Stage, Vm, guest, shootdown};
use crate::cpu::instructions::time_stamp;
use crate::report;
use crate::svm::Vcpu;
use abi::event::{Alias, LockReport, RecordKind};
use abi::manifest::Span;
use addr::{FrameRange, Gfn, Gpa, GuestPhysical, Gva, PAGE_SIZE};
use integrity::rights::Counters;
use integrity::state::PageState;
use paging::Flushed;
use paging::guest::visit_kernel_half;
use zerocopy::IntoBytes;

/// Most table pages of a guest's kernel half that are read: those of 16 GiB in 4 KiB leaves.
const TABLE_BUDGET: u64 = 16384;
/// Most conflicting frames that are reported one by one.
const ALIASES_SHOWN: usize = 16;

/// A flush of all CPUs after a change, on behalf of CPU `caller`.
pub fn flusher(vm: &'static Vm, caller: usize) -> impl FnMut() -> Flushed {
    move || shootdown::flush_all(vm, caller)
}

/// Result of a walk over the kernel half.
pub struct Survey<'a> {
    /// Aliases of every frame, by right.
    pub counters: Counters<'a>,
    /// Leaves visited.
    pub leaves: u64,
}

/// Counts the rights of every frame over all aliases in the kernel half of the current tables.
///
/// # Errors
/// The tables are damaged or too many.
pub fn survey<'m>(vcpu: &Vcpu, memory: &'m mut Memory) -> Result<Survey<'m>, &'static str> {
    let levels = vcpu.paging_levels().ok_or("the guest has paging off")?;
    let (buffers, mut counters) = memory.survey();
    let mut leaves = 0;
    visit_kernel_half(
        Gpa::new(vcpu.control_register(3)),
        levels,
        Gva::new(0),
        TABLE_BUDGET,
        buffers,
        |table, entries| guest::read_table(vcpu.vm, &vcpu.windows, table, entries),
        |leaf| {
            leaves += 1;
            let frames = FrameRange::with_count(leaf.gpa.frame(), leaf.level.frames());
            counters.add(frames, rights_of(leaf.rights));
        },
    )
    .map_err(|_| "the guest's page tables are too many or linked in circles")?;
    Ok(Survey { counters, leaves })
}

/// The first instruction at CPL 3.
pub fn arm(vcpu: &mut Vcpu) {
    let vm = vcpu.vm;
    let mut memory = vm.memory.lock();
    vcpu.request_flush();
    if vm.stage() != Stage::Boot {
        // Another vCPU was faster.
        return;
    }
    let start = time_stamp();
    shootdown::hold(vm, vcpu.index);
    let outcome = lock_text(vcpu, &mut memory).and_then(|mut report| {
        vm.set_stage(Stage::Text);
        lock_rodata(vcpu, &mut memory, &mut report)?;
        Ok(report)
    });
    shootdown::release(vm);
    match outcome {
        Ok(report) => send(report, start),
        Err(reason) => report::fatal(format_args!("the kernel cannot be locked: {reason}")),
    }
}

/// An address-space switch while read-only data waits to be locked.
pub fn look_at_rodata(vcpu: &mut Vcpu) {
    let vm = vcpu.vm;
    let Some(kernel) = vm.kernel() else { return };
    let rodata = vm.manifest.header().rodata;
    let first = guest::translate(vcpu, kernel.gva.plus(u64::from(rodata.start)));
    if first.is_none_or(|translation| translation.rights.write) {
        return;
    }
    let mut memory = vm.memory.lock();
    if vm.stage() != Stage::Text {
        return;
    }
    let start = time_stamp();
    let Some(levels) = vcpu.paging_levels() else { return };
    let mut report = empty_report(kernel, levels);
    shootdown::hold(vm, vcpu.index);
    let outcome = lock_rodata(vcpu, &mut memory, &mut report);
    shootdown::release(vm);
    match outcome {
        Ok(()) if report.stage == Stage::Full as u32 => send(report, start),
        Ok(()) => {}
        Err(reason) => report::fatal(format_args!("read-only data cannot be locked: {reason}")),
    }
}

fn empty_report(kernel: KernelPlace, levels: u8) -> LockReport {
    LockReport {
        kernel_base: kernel.gva.raw(),
        ticks: 0,
        leaves: 0,
        text_frames: 0,
        rodata_frames: 0,
        code_frames: 0,
        writable_frames: 0,
        conflicting_frames: 0,
        stage: Stage::Text as u32,
        levels: u32::from(levels),
    }
}

fn send(mut report: LockReport, start: u64) {
    report.ticks = time_stamp().wrapping_sub(start);
    report::record(
        RecordKind::Locked,
        report.as_bytes(),
        format_args!(
            "locked (stage {}): {} text frames, {} read-only, {} conflicts, {} leaves walked",
            report.stage,
            report.text_frames,
            report.rodata_frames,
            report.conflicting_frames,
            report.leaves
        ),
    );
}

/// Where the kernel is: LSTAR holds the address of a symbol that the manifest knows.
fn find_kernel(vcpu: &Vcpu) -> Result<KernelPlace, &'static str> {
    const ALIGNMENT: u64 = 2 << 20;
    let header = vcpu.vm.manifest.header();
    let entry = vcpu.vmcb().lstar;
    let gva = Gva::new(entry.wrapping_sub(u64::from(header.entry_syscall)));
    if !gva.raw().wrapping_sub(header.link_base).is_multiple_of(ALIGNMENT) {
        return Err("the system call entry is not where the manifest says");
    }
    let translation = guest::translate(vcpu, gva).ok_or("the kernel's text is not mapped")?;
    Ok(KernelPlace { gva, gpa: translation.gpa })
}

/// The frames of a span of the image, which must be mapped in one piece.
fn frames_of(vcpu: &Vcpu, kernel: KernelPlace, span: Span) -> Result<FrameRange<GuestPhysical>, &'static str> {
    for offset in (u64::from(span.start)..u64::from(span.end)).step_by(PAGE_SIZE as usize) {
        let translation = guest::translate(vcpu, kernel.gva.plus(offset));
        if translation.is_none_or(|translation| translation.gpa != kernel.gpa.plus(offset)) {
            return Err("the kernel image is not mapped in one piece");
        }
    }
    Ok(image_frames(kernel, span))
}

fn image_frames(kernel: KernelPlace, span: Span) -> FrameRange<GuestPhysical> {
    FrameRange::covering(kernel.gpa.plus(u64::from(span.start)), u64::from(span.length()))
}

fn lock_text(vcpu: &Vcpu, memory: &mut Memory) -> Result<LockReport, &'static str> {
    const CHANGE: &str = "the second stage could not be changed";
    let vm = vcpu.vm;
    let levels = vcpu.paging_levels().ok_or("the guest has paging off")?;
    let kernel = find_kernel(vcpu)?;
    let header = vm.manifest.header();
    let text = frames_of(vcpu, kernel, header.text)?;
    vm.kernel.call_once(|| kernel);
    let mut report = empty_report(kernel, levels);

    let flush = || flusher(vm, vcpu.index);
    memory.withdraw_grants(flush()).map_err(|_| CHANGE)?;
    memory.open_for_execution(&vm.ram, flush()).map_err(|_| CHANGE)?;
    memory.set_state(text, PageState::LockedCode, flush()).map_err(|_| CHANGE)?;
    report.text_frames = text.count();

    // A kernel that has not freed its initialisation code still runs it.
    let init = image_frames(kernel, header.init_text);
    let survey = survey(vcpu, memory)?;
    report.leaves = survey.leaves;
    report_conflicts(&survey.counters, &mut report);
    let mut runs = arrayvec::ArrayVec::<_, 64>::new();
    collect_runs(init, &mut runs, |frame| {
        survey.counters.collective(frame).is_some_and(|rights| rights.executable > 0)
    });
    for run in runs {
        memory.set_state(run, PageState::Code, flush()).map_err(|_| CHANGE)?;
        report.code_frames += run.count();
    }
    Ok(report)
}

/// Locks read-only data if the guest's tables make it read-only; otherwise leaves it for later.
fn lock_rodata(vcpu: &Vcpu, memory: &mut Memory, report: &mut LockReport) -> Result<(), &'static str> {
    const CHANGE: &str = "the second stage could not be changed";
    let vm = vcpu.vm;
    let kernel = vm.kernel().ok_or("the kernel has not been found")?;
    let rodata = frames_of(vcpu, kernel, vm.manifest.header().rodata)?;
    let survey = survey(vcpu, memory)?;
    report.leaves = survey.leaves;
    let mut runs = arrayvec::ArrayVec::<_, 64>::new();
    collect_runs(rodata, &mut runs, |frame| {
        survey.counters.collective(frame).is_some_and(|c| c.readable > 0 && c.writable == 0)
    });
    let count: u64 = runs.iter().map(|run| run.count()).sum();
    // Before `mark_rodata_ro` all of it is writable, after it next to nothing is.
    if count * 2 < rodata.count() {
        return Ok(());
    }
    report_conflicts(&survey.counters, report);
    for run in runs {
        let flush = flusher(vm, vcpu.index);
        memory.set_state(run, PageState::LockedReadOnly, flush).map_err(|_| CHANGE)?;
    }
    report.rodata_frames = count;
    // From here on nothing outside text and modules is code.
    let init = image_frames(kernel, vm.manifest.header().init_text);
    for frame in init.iter() {
        if memory.state(frame) == Some(PageState::Code) {
            let page = FrameRange::with_count(frame, 1);
            memory.set_state(page, PageState::Data, flusher(vm, vcpu.index)).map_err(|_| CHANGE)?;
        }
    }
    report.code_frames = 0;
    report.stage = Stage::Full as u32;
    vm.set_stage(Stage::Full);
    Ok(())
}

/// Runs of frames that satisfy `wanted`; what exceeds the capacity is left out.
fn collect_runs<const N: usize>(
    range: FrameRange<GuestPhysical>,
    runs: &mut arrayvec::ArrayVec<FrameRange<GuestPhysical>, N>,
    wanted: impl Fn(Gfn) -> bool,
) {
    for frame in range.iter().filter(|frame| wanted(*frame)) {
        match runs.last_mut() {
            Some(last) if last.end == frame => last.end = frame.plus(1),
            _ => drop(runs.try_push(FrameRange::with_count(frame, 1))),
        }
    }
}

/// Counts writable frames and those that are executable too, and names some of the latter.
fn report_conflicts(counters: &Counters<'_>, report: &mut LockReport) {
    report.writable_frames = 0;
    report.conflicting_frames = 0;
    for (_, rights) in counters.iter() {
        report.writable_frames += u64::from(rights.writable > 0);
        report.conflicting_frames += u64::from(rights.conflicts());
    }
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
