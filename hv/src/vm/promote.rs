//! Code after the lock: pages that become code, and code that becomes data again.
//!
//! Promotion is one transaction: freeze (no CPU can write the pages any more), look at the guest's
//! own tables (all aliases, after the freeze), judge, then make the pages code or undo the freeze.
//! Whatever the guest does to its tables afterwards, the second stage keeps the pages from being
//! written and executed at once.

use super::guest;
use super::kexec;
use super::lock::flusher;
use super::memory::Memory;
use super::survey::{rights_of, rights_over};
use super::violation::{Attempt, is_let_through};
use super::{Stage, Vm, fault};
use crate::report;
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use abi::event::{Promotion, RecordKind, ViolationKind};
use addr::{FrameRange, Gfn, Gpa, Gva, PAGE_SIZE};
use integrity::Rights;
use integrity::promote::jit::{LOOKED_AT, is_bpf};
use integrity::promote::{Authority, Candidate, CodeAuthority, MODULE_RANGE};
use integrity::state::PageState;
use zerocopy::IntoBytes;

/// Most pages promoted in one transaction: 2 MiB.
const MOST: u64 = 512;
/// Most pages of a mapping in front of the ones to promote that are looked at, to find its start: 8 MiB,
/// which holds all that Linux allots to BPF programs at a time on a machine with 4 memory nodes.
const MOST_BEFORE: u64 = 2048;

/// Pages that are contiguous in both address spaces.
#[derive(Clone, Copy)]
struct Run {
    gva: Gva,
    frames: FrameRange<addr::GuestPhysical>,
}

/// CPL 0 executes a page that is not code, or from which a request withholds execution.
pub fn on_execution(vcpu: &mut Vcpu<impl Vendor>, gpa: Gpa) {
    let vm = vcpu.vm;
    let mut memory = vm.memory.lock();
    let frame = gpa.frame();
    let page = memory.page(frame);
    let withheld = page.is_some_and(|page| page.withholds(Rights::EXECUTE));
    let is = |state| !withheld && page.is_some_and(|page| page.state == state);
    if is(PageState::Code) {
        // Another CPU was faster.
        return vcpu.request_flush();
    }
    if is_init_text(vm, gpa) && is(PageState::Data) {
        let page = FrameRange::with_count(frame, 1);
        let _ = memory.set_state(page, PageState::Code, flusher(vm, vcpu.index));
        return vcpu.request_flush();
    }
    let gva = guest::fetched_address(vcpu, gpa);
    let promoted =
        run_around(vcpu, &memory, gva, gpa).is_some_and(|run| promote(vcpu, &mut memory, run));
    drop(memory);
    vcpu.request_flush();
    if promoted {
        return;
    }
    if vcpu.leaves {
        return kexec::hand_over(vcpu);
    }
    let attempt = Attempt {
        gva: Some(gva),
        gpa: Some(gpa),
        old: fault::old_value(vcpu, gpa),
        ..Attempt::new(ViolationKind::Execute)
    };
    if is_let_through(vcpu, attempt) {
        fault::release(vcpu, &mut vm.memory.lock(), gpa);
    }
}

/// Where the code at `gva` is; a page that was never executed is promoted first. As long as the
/// caller holds the memory, no CPU can write it.
pub fn code_at<V: Vendor>(vcpu: &mut Vcpu<V>, memory: &mut Memory<V>, gva: Gva) -> Option<Gpa> {
    let gpa = guest::translate(vcpu, gva)?.gpa;
    if memory.state(gpa.frame()) == Some(PageState::Data) {
        let run = run_around(vcpu, memory, gva, gpa)?;
        promote(vcpu, memory, run);
        vcpu.request_flush();
    }
    (memory.state(gpa.frame()) == Some(PageState::Code)).then_some(gpa)
}

/// Whether the kernel still boots and `gpa` is its initialisation code.
fn is_init_text(vm: &Vm<impl Vendor>, gpa: Gpa) -> bool {
    let offset = vm.kernel().and_then(|kernel| gpa.raw().checked_sub(kernel.gpa.raw()));
    vm.stage() == Stage::Text
        && offset.is_some_and(|offset| vm.manifest().header().init_text.contains(offset))
}

/// The data pages around `gva`, which leads to `gpa`, that the guest maps executable and not
/// writable, as far as they are contiguous.
fn run_around<V: Vendor>(vcpu: &Vcpu<V>, memory: &Memory<V>, gva: Gva, gpa: Gpa) -> Option<Run> {
    let vm = vcpu.vm;
    let page = Gva::new(gva.raw() & !(PAGE_SIZE - 1));
    let fits = |distance: i64| {
        let gva = Gva::new(page.raw().wrapping_add_signed(distance * PAGE_SIZE.cast_signed()));
        let expected = Gfn::new(gpa.frame().raw().wrapping_add_signed(distance));
        let translation = guest::translate(vcpu, gva)?;
        let rights = translation.rights;
        let same = translation.gpa.frame() == expected
            && rights.execute
            && !rights.write
            && !rights.user
            && vm.is_ram(expected)
            && memory.page(expected).is_some_and(|page| {
                page.state == PageState::Data && !page.withholds(Rights::EXECUTE)
            });
        same.then_some((gva, expected))
    };
    let (mut gva, mut first) = fits(0)?;
    let mut count = 1;
    for distance in 1..MOST.cast_signed() {
        let Some((lower, frame)) = fits(-distance) else { break };
        (gva, first) = (lower, frame);
        count += 1;
    }
    for distance in 1..MOST.cast_signed() {
        if count == MOST || fits(distance).is_none() {
            break;
        }
        count += 1;
    }
    Some(Run { gva, frames: FrameRange::with_count(first, count) })
}

/// The transaction; says whether the pages are code now.
fn promote<V: Vendor>(vcpu: &Vcpu<V>, memory: &mut Memory<V>, run: Run) -> bool {
    let vm = vcpu.vm;
    let Ok(()) = memory.freeze(run.frames, flusher(vm, vcpu.index)) else { return false };
    let verdict = judge(vcpu, memory, run);
    let state = match verdict {
        Some(Authority::Promote { .. }) => PageState::Code,
        _ => PageState::Data,
    };
    let Ok(()) = memory.set_state(run.frames, state, flusher(vm, vcpu.index)) else { return false };
    let Some(Authority::Promote { authority }) = verdict else { return false };
    let promotion = Promotion {
        gva: run.gva.raw(),
        gpa: run.frames.start.start().raw(),
        pages: u32::try_from(run.frames.count()).unwrap_or(u32::MAX),
        authority,
    };
    report::record(
        RecordKind::Promoted,
        promotion.as_bytes(),
        format_args!(
            "{} pages at {:#x} are code (unauthenticated)",
            promotion.pages, promotion.gva
        ),
    );
    true
}

/// Looks at all aliases of the frozen pages and asks the authority.
fn judge<V: Vendor>(vcpu: &Vcpu<V>, memory: &mut Memory<V>, run: Run) -> Option<Authority> {
    let aliases = rights_over(vcpu, memory, run.frames).ok()?;
    let mut mapped = Rights::all();
    for (frame, index) in run.frames.iter().zip(0..) {
        let translation = guest::translate(vcpu, run.gva.plus(index * PAGE_SIZE))?;
        if translation.gpa.frame() != frame {
            return None;
        }
        mapped &= rights_of(translation.rights);
    }
    let length = run.frames.count() * PAGE_SIZE;
    let policy = &vcpu.vm.policy;
    let bpf = !policy.jit && is_in_bpf_mapping(vcpu, run.gva);
    Some(policy.judge(&Candidate { start: run.gva, length, mapped, aliases, bpf }))
}

/// Whether the mapping that `page` lies in, the executable pages in one piece around it, starts as one
/// for BPF programs does.
fn is_in_bpf_mapping(vcpu: &Vcpu<impl Vendor>, page: Gva) -> bool {
    let belongs = |page: Gva| {
        MODULE_RANGE.contains(&page.raw())
            && guest::translate(vcpu, page)
                .is_some_and(|there| there.rights.execute && !there.rights.write)
    };
    let mut start = page;
    for _ in 0..MOST_BEFORE {
        let before = Gva::new(start.raw().wrapping_sub(PAGE_SIZE));
        if !belongs(before) {
            break;
        }
        start = before;
    }
    let mut bytes = [0; LOOKED_AT];
    guest::read(vcpu, start, &mut bytes).is_some() && is_bpf(&bytes)
}

/// The guest writes a page of unlocked code: it is data from now on.
pub fn demote<V: Vendor>(vcpu: &mut Vcpu<V>, memory: &mut Memory<V>, frame: Gfn) {
    let page = FrameRange::with_count(frame, 1);
    // The page has a state, so it is mapped, and the pool holds all tables that can be needed.
    let _ = memory.set_state(page, PageState::Data, flusher(vcpu.vm, vcpu.index));
    vcpu.request_flush();
}
