//! The lock: from the first instruction at CPL 3 on, the kernel keeps its promises.
//!
//! All vCPUs are held while the kernel half of the guest's page tables is walked and the rights of
//! every frame are counted over all its aliases. Kernel text (by the manifest) is locked at once;
//! read-only data as soon as no alias can write it, which a kernel that starts user helpers early
//! may reach later. Anything that keeps the lock from being complete stops the machine: a kernel
//! that only seems protected is worse than one that does not run.

use super::memory::Memory;
use super::restore;
use super::survey::{Findings, examine, image_frames};
use super::{KernelPlace, Stage, Vm, guest, shootdown};
use crate::cpu::instructions::time_stamp;
use crate::report;
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use abi::event::{LockReport, RecordKind};
use abi::manifest::Span;
use addr::{FrameRange, GuestPhysical, Gva};
use integrity::state::PageState;
use paging::{Due, Flushed};
use x86_defs::{cr4, msr};
use zerocopy::IntoBytes;

const CHANGE: &str = "the second stage could not be changed";

/// A flush of all CPUs after a change, on behalf of CPU `caller`.
pub fn flusher(vm: &'static Vm<impl Vendor>, caller: usize) -> impl FnMut(Due<'_>) -> Flushed<'_> {
    move |due| shootdown::flush_all(vm, caller, due)
}

/// The first instruction at CPL 3.
pub fn arm(vcpu: &mut Vcpu<impl Vendor>) {
    let vm = vcpu.vm;
    let mut memory = vm.memory.lock();
    vcpu.request_flush();
    if vm.stage() != Stage::Boot {
        // Another vCPU was faster.
        return;
    }
    let start = time_stamp();
    shootdown::hold(vm, vcpu.index);
    let outcome = on_kernel_tables(vcpu, |vcpu| lock_all(vcpu, &mut memory));
    shootdown::release(vm);
    match outcome {
        Ok(report) => send(report, start),
        Err(reason) => report::fatal(format_args!("the kernel cannot be locked: {reason}")),
    }
}

/// Does `work` with the kernel's page tables in force. Under page-table isolation user code runs on
/// a copy without the kernel's text, which is in the page behind them (Linux,
/// Documentation/arch/x86/pti.rst).
fn on_kernel_tables<V: Vendor, T>(vcpu: &mut Vcpu<V>, work: impl FnOnce(&Vcpu<V>) -> T) -> T {
    const USER_COPY: u64 = 1 << 12;
    let tables = vcpu.control_register(3);
    if find_kernel(vcpu).is_err() {
        vcpu.set_control_register(3, tables & !USER_COPY);
    }
    let result = work(vcpu);
    vcpu.set_control_register(3, tables);
    result
}

/// An address-space switch while read-only data waits to be locked.
pub fn look_at_rodata(vcpu: &mut Vcpu<impl Vendor>) {
    let vm = vcpu.vm;
    let Some(kernel) = vm.kernel() else { return };
    let rodata = vm.manifest().header().rodata;
    let first = guest::translate(vcpu, kernel.gva.plus(u64::from(rodata.start)));
    if first.is_none_or(|translation| translation.rights.write) {
        return;
    }
    let mut memory = vm.memory.lock();
    if vm.stage() != Stage::Text {
        return;
    }
    let start = time_stamp();
    shootdown::hold(vm, vcpu.index);
    let outcome = examine(vcpu, &mut memory, kernel).and_then(|findings| {
        let mut report = report_of(vcpu, kernel, &findings);
        lock_rodata(vcpu, &mut memory, kernel, &findings, &mut report)?;
        Ok(report)
    });
    shootdown::release(vm);
    match outcome {
        Ok(report) if vm.stage() == Stage::Full => send(report, start),
        Ok(_) => {}
        Err(reason) => report::fatal(format_args!("read-only data cannot be locked: {reason}")),
    }
}

fn report_of(vcpu: &Vcpu<impl Vendor>, kernel: KernelPlace, findings: &Findings) -> LockReport {
    LockReport {
        kernel_base: kernel.gva.raw(),
        ticks: 0,
        leaves: findings.leaves,
        text_frames: image_frames(kernel, vcpu.vm.manifest().header().text).count(),
        rodata_frames: 0,
        code_frames: 0,
        writable_frames: findings.totals.writable,
        conflicting_frames: findings.totals.conflicting,
        stage: Stage::Text as u32,
        levels: vcpu.paging_levels().map_or(0, u32::from),
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
fn find_kernel(vcpu: &Vcpu<impl Vendor>) -> Result<KernelPlace, &'static str> {
    const ALIGNMENT: u64 = 2 << 20;
    let header = vcpu.vm.manifest().header();
    let entry = vcpu.msr(msr::LSTAR);
    let gva = Gva::new(entry.wrapping_sub(u64::from(header.entry_syscall)));
    if !gva.raw().wrapping_sub(header.link_base).is_multiple_of(ALIGNMENT) {
        return Err("the system call entry is not where the manifest says");
    }
    let translation = guest::translate(vcpu, gva).ok_or("the kernel's text is not mapped")?;
    Ok(KernelPlace { gva, gpa: translation.gpa })
}

/// The frames of a span of the image, which must be mapped in one piece.
fn frames_of(
    vcpu: &Vcpu<impl Vendor>,
    kernel: KernelPlace,
    span: Span,
) -> Result<FrameRange<GuestPhysical>, &'static str> {
    let mut offset = u64::from(span.start);
    while offset < u64::from(span.end) {
        let gva = kernel.gva.plus(offset);
        let translation = guest::translate(vcpu, gva)
            .filter(|translation| translation.gpa == kernel.gpa.plus(offset))
            .ok_or("the kernel image is not mapped in one piece")?;
        // On to the next leaf.
        let leaf = 1 << translation.level.shift();
        offset += leaf - (gva.raw() & (leaf - 1));
    }
    Ok(image_frames(kernel, span))
}

fn lock_all<V: Vendor>(vcpu: &Vcpu<V>, memory: &mut Memory<V>) -> Result<LockReport, &'static str> {
    let vm = vcpu.vm;
    // Entries with two rights go by the kind of the mapping, not by the mode of the CPU: only
    // SMEP, which the lock pins, keeps the kernel from executing what it maps as a user page.
    if vm.separation().is_by_address() && vcpu.control_register(4) & cr4::SMEP == 0 {
        return Err("it runs without SMEP, on which mode-based execute control relies");
    }
    let kernel = find_kernel(vcpu)?;
    let text = frames_of(vcpu, kernel, vm.manifest().header().text)?;
    frames_of(vcpu, kernel, vm.manifest().header().rodata)?;
    let findings = examine(vcpu, memory, kernel)?;
    let mut report = report_of(vcpu, kernel, &findings);
    *vm.kernel.lock() = Some(kernel);

    let flush = || flusher(vm, vcpu.index);
    memory.withdraw_grants(flush()).map_err(|_| CHANGE)?;
    memory.open_for_execution(flush()).map_err(|_| CHANGE)?;
    memory.set_state(text, PageState::LockedCode, flush()).map_err(|_| CHANGE)?;
    vm.set_stage(Stage::Text);
    lock_rodata(vcpu, memory, kernel, &findings, &mut report)?;
    if vm.stage() == Stage::Text {
        // A kernel that has not freed its initialisation code still runs it.
        for run in findings.init_text {
            memory.set_state(run, PageState::Code, flush()).map_err(|_| CHANGE)?;
            report.code_frames += run.count();
        }
    }
    Ok(report)
}

/// Locks read-only data if the guest's tables make it read-only; otherwise leaves it for later.
fn lock_rodata<V: Vendor>(
    vcpu: &Vcpu<V>,
    memory: &mut Memory<V>,
    kernel: KernelPlace,
    findings: &Findings,
    report: &mut LockReport,
) -> Result<(), &'static str> {
    let vm = vcpu.vm;
    let header = vm.manifest().header();
    let count: u64 = findings.rodata.iter().map(|run| run.count()).sum();
    // Before `mark_rodata_ro` all of it is writable, after it next to nothing is.
    if count * 2 < image_frames(kernel, header.rodata).count() {
        return Ok(());
    }
    let flush = || flusher(vm, vcpu.index);
    for run in &findings.rodata {
        memory.set_state(*run, PageState::LockedReadOnly, flush()).map_err(|_| CHANGE)?;
    }
    // What the kernel generated by itself before any program ran (compiled packet filters, say) is
    // code, whatever may become code later; until it is written, like any code.
    for run in &findings.generated {
        for frame in run.iter() {
            if memory.state(frame) == Some(PageState::Data) {
                let page = FrameRange::with_count(frame, 1);
                memory.set_state(page, PageState::Code, flush()).map_err(|_| CHANGE)?;
                report.code_frames += 1;
            }
        }
    }
    // From here on nothing outside text and modules is code.
    for frame in image_frames(kernel, header.init_text).iter() {
        if memory.state(frame) == Some(PageState::Code) {
            let page = FrameRange::with_count(frame, 1);
            memory.set_state(page, PageState::Data, flush()).map_err(|_| CHANGE)?;
        }
    }
    report.rodata_frames = count;
    report.stage = Stage::Full as u32;
    vm.set_stage(Stage::Full);
    restore::at_lock(vcpu, memory);
    Ok(())
}
