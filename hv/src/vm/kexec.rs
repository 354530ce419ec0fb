//! Another kernel in the place of this one, if the policy names it.
//!
//! A kernel that leaves loads an empty IDT, then runs from a page of its own making, which moves the
//! new kernel's pages into place, and jumps there, by way of a program of the one who loaded it
//! (`machine_kexec` and `relocate_kernel`, Linux arch/x86/kernel; "purgatory"). None of that is run.
//! The first instruction outside of locked text and promoted code faults, and from then on the
//! hypervisor does it all:
//!
//! 1. every vCPU is stopped, and what was begun for it ended;
//! 2. nothing is in force any more: all RAM is data, as at boot;
//! 3. the pages are moved, as the old kernel's list says;
//! 4. one of the segments must be a named kernel, byte for byte: by SHA-256, where it lies now;
//! 5. low memory is laid out as for the first kernel: command line, memory map, firmware tables, first
//!    page tables. The predecessor has a say in nothing but the initial file system, in which there
//!    must not be what a kernel uses before it is locked;
//! 6. the vCPU starts at the new kernel's entry, the others wait for it, and the lock waits for the
//!    first instruction at CPL 3 as ever.
//!
//! So between two kernels that are known no instruction is executed that is not. What does not come
//! to this end stops the machine.

use super::lock::flusher;
use super::memory::Memory;
use super::violation::{self, Attempt};
use super::{Stage, Vm, learn, restore, shootdown, state, text};
use crate::boot::linux::{self, Start};
use crate::log;
use crate::memory::secret;
use crate::report;
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use abi::Fingerprint;
use abi::event::{RecordKind, Succession, ViolationKind};
use abi::manifest::Header;
use addr::{FRAMES_PER_2M, FrameRange, Gfn, Gpa, GuestPhysical, PAGE_SIZE};
use core::sync::atomic::Ordering;
use kexec::{PARAMETER_BYTES, Parameters, Refusal, Search, Segments, walk};
use zerocopy::IntoBytes;

const RDI: usize = 7;

/// Whether a kernel may take its descriptor tables away, which it does to leave.
pub fn may_leave(vm: &Vm<impl Vendor>) -> bool {
    vm.policy.kexec_in_force()
}

/// A kernel that has taken its tables away executes what is no code: it hands over.
pub fn hand_over(vcpu: &mut Vcpu<impl Vendor>) {
    let vm = vcpu.vm;
    if !shootdown::stop(vm, vcpu.index) {
        // Another CPU was faster; this one waits at its next entry.
        return;
    }
    match succeed(vcpu) {
        Ok(start) => {
            vcpu.reset_to(start.state(), vm.incarnation());
            shootdown::resume(vm);
        }
        Err(reason) => {
            log!("kexec: {reason}");
            let attempt = Attempt { new: vcpu.gpr(RDI), ..Attempt::new(ViolationKind::Kexec) };
            violation::stop(vcpu, attempt)
        }
    }
}

/// Puts the new kernel in the place of the old one.
fn succeed<V: Vendor>(vcpu: &mut Vcpu<V>) -> Result<Start, &'static str> {
    let vm = vcpu.vm;
    forget(vcpu, &mut vm.memory.lock())?;
    let segments = move_pages(vcpu)?;
    let (number, place) = find_kernel(vcpu, &segments)?;
    let header = vm.kernels.named.get(number).ok_or(Refusal::Unnamed)?.header();
    let taken = room(header, place);
    let parameters = find_parameters(vcpu, &segments)?;
    let initrd = initrd(vcpu, &parameters, taken)?;
    let start = linux::load_again(vcpu.physical(), &header.load, place, initrd)?;
    *vm.kernel.lock() = None;
    vm.running.store(number + 1, Ordering::Release);
    vm.incarnation.fetch_add(1, Ordering::SeqCst);
    let record = Succession { kernel_digest: header.kernel_digest, gpa: place.raw() };
    report::record(
        RecordKind::Succession,
        record.as_bytes(),
        format_args!("kexec: {} follows, at {:#x}", header.release(), place.raw()),
    );
    Ok(start)
}

/// Everything that was in force is so no more.
fn forget<V: Vendor>(vcpu: &Vcpu<V>, memory: &mut Memory<V>) -> Result<(), &'static str> {
    let vm = vcpu.vm;
    vm.set_stage(Stage::Boot);
    vm.requested.begin_anew();
    learn::begin_anew();
    text::begin_anew();
    state::begin_anew();
    restore::begin_anew();
    secret::forget();
    let flush = flusher(vm, vcpu.index);
    memory.begin_anew(flush).map_err(|_| "the second stage could not be changed")
}

/// Whether a page may be moved to `frame`: RAM that the hypervisor does not lay out itself.
fn is_free(vm: &Vm<impl Vendor>, frame: Gfn) -> bool {
    vm.is_ram(frame) && !is_laid_out(FrameRange::with_count(frame, 1))
}

fn is_laid_out(frames: FrameRange<GuestPhysical>) -> bool {
    linux::LAID_OUT.into_iter().any(|range| {
        frames.overlaps(FrameRange::covering(Gpa::new(range.start), range.end - range.start))
    })
}

/// Moves the pages of the list whose head `relocate_kernel` was called with.
fn move_pages<V: Vendor>(vcpu: &Vcpu<V>) -> Result<Segments, Refusal> {
    let vm = vcpu.vm;
    let ram: u64 = vm.ram.iter().map(|range| range.count()).sum();
    // Every page once, and for each 511 of them a page of entries that leads to the next.
    let most = ram + ram / 256 + PAGE_SIZE;
    let read = |at: Gpa| {
        let window = vcpu.windows.open(at.frame().identity()).filter(|_| vm.is_ram(at.frame()))?;
        Some(window.read_u64(at.offset()))
    };
    let copy = |from: Gfn, to: Gfn| {
        if !vm.is_ram(from) || !is_free(vm, to) {
            return None;
        }
        let [from, to] = [from, to].map(|frame| frame.start().identity());
        if from == to { Some(()) } else { vcpu.physical().copy(from, to, PAGE_SIZE).ok() }
    };
    walk(vcpu.gpr(RDI), most, read, copy)
}

/// The frames that a kernel needs where it is loaded.
fn room(header: &Header, place: Gpa) -> FrameRange<GuestPhysical> {
    FrameRange::covering(place, header.loaded_length().max(u64::from(header.load.init_size)))
}

/// The named kernel that one of the segments is, and where.
fn find_kernel<V: Vendor>(vcpu: &Vcpu<V>, segments: &Segments) -> Result<(usize, Gpa), Refusal> {
    let mut refusal = Refusal::Unnamed;
    for (manifest, number) in vcpu.vm.kernels.named.iter().zip(0..) {
        let header = manifest.header();
        let loaded = header.loaded_length();
        let aligned = segments.iter().filter(|segment| segment.start.is_aligned(FRAMES_PER_2M));
        for segment in aligned.filter(|segment| loaded <= segment.count() * PAGE_SIZE) {
            let place = segment.start.start();
            let mut fingerprint = Fingerprint::default();
            // The segment is RAM, and no vCPU runs.
            let scanned =
                vcpu.physical().scan(place.identity(), loaded, |piece| fingerprint.update(piece));
            if scanned.is_err() || fingerprint.finish() != header.load.fingerprint {
                continue;
            }
            if room(header, place).end <= segment.end {
                return Ok((number, place));
            }
            refusal = Refusal::Room;
        }
    }
    Err(refusal)
}

/// The parameters of a boot, in the first segment that begins with such.
fn find_parameters<V: Vendor>(vcpu: &Vcpu<V>, segments: &Segments) -> Result<Parameters, Refusal> {
    let of = |segment: &FrameRange<GuestPhysical>| {
        let mut page = [0; PARAMETER_BYTES];
        vcpu.physical().read(segment.start.start().identity(), &mut page).ok()?;
        Parameters::of(&page)
    };
    let filled = segments.iter().filter(|segment| !segment.is_empty());
    filled.filter_map(of).next().ok_or(Refusal::NoParameters)
}

/// The bytes of the initial file system: in RAM, in one piece, in nobody's way, and without what a
/// kernel would take for its firmware's.
fn initrd<V: Vendor>(
    vcpu: &Vcpu<V>,
    parameters: &Parameters,
    taken: FrameRange<GuestPhysical>,
) -> Result<core::ops::Range<u64>, Refusal> {
    let (start, length) = (parameters.initrd, parameters.initrd_bytes);
    if length == 0 {
        return Ok(0..0);
    }
    let end = start.checked_add(length).ok_or(Refusal::Initrd)?;
    let frames = FrameRange::covering(start, length);
    let in_ram = |range: &FrameRange<_>| range.start <= frames.start && frames.end <= range.end;
    if !vcpu.vm.ram.iter().any(in_ram) || frames.overlaps(taken) || is_laid_out(frames) {
        return Err(Refusal::Initrd);
    }
    let mut search = Search::default();
    // RAM, and no vCPU runs.
    let scanned = vcpu.physical().scan(start.identity(), length, |piece| search.update(piece));
    if scanned.is_err() {
        return Err(Refusal::Initrd);
    }
    if search.found() { Err(Refusal::Forbidden) } else { Ok(start.raw()..end.raw()) }
}
