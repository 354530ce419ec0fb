//! Second-stage faults: the verdict on an access that a page's state does not allow.

use super::memory::Memory;
use super::separation::Separation;
use super::violation::{Attempt, is_let_through};
use super::{Stage, guest, learn, lock, promote, text};
use crate::cpu::{apic, instructions};
use crate::publish;
use crate::vcpu::Vcpu;
use crate::vendor::{Access, Exception, Vendor};
use abi::event::ViolationKind;
use abi::hypercall::Counter;
use addr::{FrameRange, Gpa, Gva};
use integrity::Rights;
use integrity::state::{Page, PageState, View};
use x86_decode::Operation;

/// Handles a fault: after it the guest retries, goes on behind the instruction, or takes #GP.
pub fn handle(vcpu: &mut Vcpu<impl Vendor>, access: Access) {
    // A page that allows nothing at the moment looks like one that is not there.
    let is_hidden = !access.present && !vcpu.vm.is_mapped_ram(access.gpa.frame());
    if is_hidden || publish::guest_frames().contains(access.gpa.frame()) {
        vcpu.shared().count(Counter::NestedFault);
        own_memory(vcpu, access);
    } else if access.fetch && !access.table_walk {
        fetch(vcpu, access);
    } else {
        vcpu.shared().count(Counter::NestedFault);
        if access.write || vcpu.vm.is_readable(access.gpa.frame()) {
            write(vcpu, access);
        } else {
            read(vcpu, access);
        }
    }
}

/// Nothing is mapped there, the hypervisor's memory or the end of the physical address space; or it
/// is published for reading.
fn own_memory(vcpu: &mut Vcpu<impl Vendor>, access: Access) {
    let operation = guest::fetch(vcpu).map(|instruction| instruction.operation);
    let (gva, size, new) = match operation {
        _ if access.table_walk => (None, 0, 0),
        _ if access.fetch => (Some(guest::fetched_address(vcpu, access.gpa)), 0, 0),
        Some(Operation::Store { address, size, value }) => (Some(Gva::new(address)), size, value),
        Some(Operation::ReadModifyWrite { address, size }) => (Some(Gva::new(address)), size, 0),
        Some(Operation::Load { address, .. }) => (Some(Gva::new(address)), 0, 0),
        // Of the two addresses of a string instruction either may be meant.
        _ => (None, 0, 0),
    };
    let attempt = Attempt {
        gva,
        gpa: Some(access.gpa),
        size: u32::from(size),
        new,
        ..Attempt::new(ViolationKind::OwnMemory)
    };
    // There is nothing that could be let through: a policy of `log` reports and refuses.
    if is_let_through(vcpu, attempt) {
        vcpu.inject(Exception::GeneralProtection);
    }
}

fn fetch(vcpu: &mut Vcpu<impl Vendor>, access: Access) {
    let vm = vcpu.vm;
    if vm.stage() == Stage::Boot {
        vcpu.shared().count(Counter::NestedFault);
        return if vcpu.cpl() == 3 { lock::arm(vcpu) } else { learn::allow(vcpu, access.gpa) };
    }
    let page = vm.memory.lock().page(access.gpa.frame());
    let withheld = page.is_some_and(|page| page.withholds(Rights::EXECUTE));
    let wanted = match page.map(|page| page.state) {
        Some(_) if withheld && vcpu.cpl() < 3 => {
            vcpu.shared().count(Counter::NestedFault);
            return promote::on_execution(vcpu, access.gpa);
        }
        Some(PageState::Code | PageState::LockedCode) if withheld => {
            // Code is for the kernel, and that does not want it executed any more.
            vcpu.shared().count(Counter::NestedFault);
            return vcpu.inject(Exception::GeneralProtection);
        }
        Some(PageState::Released) if withheld => View::User,
        Some(PageState::Code | PageState::LockedCode) => View::Kernel,
        Some(PageState::Data | PageState::LockedReadOnly) if vcpu.cpl() == 3 => View::User,
        Some(PageState::Released) => vcpu.view(),
        _ => {
            vcpu.shared().count(Counter::NestedFault);
            return promote::on_execution(vcpu, access.gpa);
        }
    };
    if vm.separation() == Separation::Views && vcpu.view() != wanted {
        vcpu.shared().count(Counter::ViewSwitch);
        return vcpu.set_view(wanted);
    }
    vcpu.shared().count(Counter::NestedFault);
    if vm.separation().is_by_address() && wanted == View::Kernel && vcpu.cpl() == 3 {
        // A kernel that maps its code for user programs; with two views this would work, and GMET
        // allows it.
        return vcpu.inject(Exception::GeneralProtection);
    }
    if vm.is_ram(access.gpa.frame()) {
        // Another CPU has just allowed it.
        vcpu.request_flush();
    } else {
        // Device memory has the state of data, but nobody executes it.
        promote::on_execution(vcpu, access.gpa);
    }
}

fn write(vcpu: &mut Vcpu<impl Vendor>, access: Access) {
    let frame = access.gpa.frame();
    if frame == Gpa::new(apic::BASE).frame() {
        return apic_write(vcpu, access);
    }
    let vm = vcpu.vm;
    let mut memory = vm.memory.lock();
    match memory.page(frame) {
        Some(page) if page.state.is_locked() || page.withholds(Rights::WRITE) => {
            if access.table_walk {
                drop(memory);
                table_walk(vcpu, access, page.state);
            } else {
                text::write(vcpu, memory, access.gpa, page.state);
            }
        }
        Some(Page { state: PageState::Code, .. }) => promote::demote(vcpu, &mut memory, frame),
        // Another CPU has just allowed it.
        _ => vcpu.request_flush(),
    }
}

/// A load, or a table that the guest's own page walk wants.
fn read(vcpu: &mut Vcpu<impl Vendor>, access: Access) {
    let loaded = guest::fetch(vcpu).and_then(|instruction| match instruction.operation {
        Operation::Load { address, .. } => Some(Gva::new(address)),
        _ => None,
    });
    refuse_read(vcpu, loaded.filter(|_| !access.table_walk), access.gpa);
}

/// The guest reads at `gpa`, by itself or by us, where a request withholds reading.
fn refuse_read(vcpu: &mut Vcpu<impl Vendor>, gva: Option<Gva>, gpa: Gpa) {
    let vm = vcpu.vm;
    let frame = gpa.frame();
    if vm.is_readable(frame) || !vm.is_ram(frame) {
        // Another CPU has just allowed it.
        return vcpu.request_flush();
    }
    let attempt = Attempt { gva, gpa: Some(gpa), ..Attempt::new(ViolationKind::Read) };
    if is_let_through(vcpu, attempt) {
        let mut memory = vm.memory.lock();
        if let Some(page) = memory.page(frame) {
            let page = Page { withheld: page.withheld - Rights::READ, ..page };
            let range = FrameRange::with_count(frame, 1);
            // RAM is mapped, and the pool holds all tables that can be needed.
            let _ = memory.set_page(range, page, lock::flusher(vm, vcpu.index));
        }
        vcpu.request_flush();
    }
}

/// An operand of an instruction that we complete cannot be read: either a request withholds that,
/// or another CPU has just changed the guest's tables, and the guest retries.
pub fn unread_operand(vcpu: &mut Vcpu<impl Vendor>, gva: Gva, length: u64) {
    let ends = [gva, gva.plus(length.saturating_sub(1))];
    let found = ends.into_iter().find_map(|gva| {
        let gpa = guest::translate(vcpu, gva)?.gpa;
        (!vcpu.vm.is_readable(gpa.frame())).then_some((gva, gpa))
    });
    if let Some((gva, gpa)) = found {
        refuse_read(vcpu, Some(gva), gpa);
    }
}

/// The guest's own page walk would write an accessed or dirty bit into a locked page: a page table
/// was put there, or a request made it read-only.
fn table_walk(vcpu: &mut Vcpu<impl Vendor>, access: Access, state: PageState) {
    let old = old_value(vcpu, access.gpa);
    let attempt = Attempt { gpa: Some(access.gpa), old, ..Attempt::new(write_kind(state)) };
    if is_let_through(vcpu, attempt) {
        release(vcpu, &mut vcpu.vm.memory.lock(), access.gpa);
    }
}

/// What a refused write to a page of this state is, if not to a patch site.
pub const fn write_kind(state: PageState) -> ViolationKind {
    match state {
        PageState::LockedCode | PageState::Code => ViolationKind::WriteText,
        _ => ViolationKind::WriteRodata,
    }
}

/// Up to 8 bytes of what is at `gpa` now; 0 where that is not RAM: reading a device can change it.
pub fn old_value(vcpu: &Vcpu<impl Vendor>, gpa: Gpa) -> u64 {
    let mut bytes = [0; 8];
    if vcpu.vm.is_ram(gpa.frame())
        && let Some(window) = vcpu.windows.open(gpa.frame().identity())
    {
        window.read(gpa.offset(), &mut bytes);
    }
    u64::from_le_bytes(bytes)
}

/// Stops enforcing anything on a page, as a policy of `log` demands.
pub fn release<V: Vendor>(vcpu: &mut Vcpu<V>, memory: &mut Memory<V>, gpa: Gpa) {
    let page = FrameRange::with_count(gpa.frame(), 1);
    // A frame with a state is mapped, and the pool holds all tables that can be needed. Device
    // memory has no state; it stays as it is and the guest faults again.
    let _ = memory.set_state(page, PageState::Released, lock::flusher(vcpu.vm, vcpu.index));
    vcpu.request_flush();
}

/// A write to the local APIC's page: passed on, unless it would reset or start a CPU.
fn apic_write(vcpu: &mut Vcpu<impl Vendor>, access: Access) {
    vcpu.shared().count(Counter::ApicWrite);
    let instruction = guest::fetch(vcpu);
    let Some((length, value)) = instruction.and_then(|instruction| match instruction.operation {
        Operation::Store { size: 4, value, .. } => Some((instruction.length, value)),
        _ => None,
    }) else {
        let attempt = Attempt { gpa: Some(access.gpa), ..Attempt::new(ViolationKind::Undecodable) };
        if is_let_through(vcpu, attempt) {
            vcpu.inject(Exception::GeneralProtection);
        }
        return;
    };
    let (register, value) = (access.gpa.offset() as u64, instructions::low_half(value));
    if register == apic::register::ICR_LOW && apic::would_free_a_cpu(value) {
        let attempt = Attempt {
            gpa: Some(access.gpa),
            size: 4,
            new: u64::from(apic::read(apic::register::ICR_HIGH)) << 32 | u64::from(value),
            ..Attempt::new(ViolationKind::CpuEscape)
        };
        // Dropped whatever the policy: a CPU outside the hypervisor would end all enforcement.
        let _ = super::violation::report(vcpu, attempt);
    } else {
        apic::write(register, value);
    }
    vcpu.advance(length);
}
