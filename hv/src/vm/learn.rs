//! Before the lock: execution is granted to CPL 0 as it is needed, leaf by leaf of the guest's own
//! tables, so that the first instruction at CPL 3 faults. That fault starts the lock.
//!
//! Grants made while the boot loader part of the kernel ran (low addresses) are withdrawn when the
//! kernel proper starts, since their memory will be given to user processes.

use super::guest;
use super::lock::flusher;
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use addr::{FRAMES_PER_2M, FrameRange, Gfn, Gpa};
use core::sync::atomic::{AtomicBool, Ordering};
use paging::Level;

/// Lowest address of the kernel image (Documentation/arch/x86/x86_64/mm.rst).
const KERNEL_IMAGE: u64 = 0xffff_ffff_8000_0000;
static KERNEL_STARTED: AtomicBool = AtomicBool::new(false);

/// Another kernel follows.
pub fn begin_anew() {
    KERNEL_STARTED.store(false, Ordering::Release);
}

/// Lets the vCPU execute at `gpa`.
pub fn allow(vcpu: &mut Vcpu<impl Vendor>, gpa: Gpa) {
    let vm = vcpu.vm;
    let level = guest::translate(vcpu, guest::fetched_address(vcpu, gpa))
        .map(|translation| translation.level);
    let mut memory = vm.memory.lock();
    vcpu.request_flush();
    if vcpu.rip().raw() >= KERNEL_IMAGE
        && !KERNEL_STARTED.swap(true, Ordering::AcqRel)
        && let Err(error) = memory.withdraw_grants(flusher(vm, vcpu.index))
    {
        crate::report::fatal(format_args!("second stage: {error}"));
    }
    let frame = gpa.frame();
    if vm.separation().is_by_address() {
        // The kernel can execute all RAM through its own mappings; this is a user mapping, or
        // paging is off, or it is no RAM.
        let _ = memory.grant_execute_to_all(FrameRange::with_count(frame, 1));
        return;
    }
    if memory.is_executable(frame) {
        return;
    }
    let large = FrameRange::with_count(Gfn::new(frame.raw() & !(FRAMES_PER_2M - 1)), FRAMES_PER_2M);
    if level.is_some_and(|level| level > Level::Page4K) && memory.grant_execute(large).is_ok() {
        return;
    }
    // A page with a translation can be granted; one without would have been reported as such.
    let _ = memory.grant_execute(FrameRange::with_count(frame, 1));
}
