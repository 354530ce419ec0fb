//! Reading the guest: its page tables, its memory, the instruction at its RIP.
//!
//! Everything read here can change at the next moment, and comes from somebody who may be hostile.
//! Addresses are checked against the guest's RAM before a window is opened, so that neither device
//! memory nor the hypervisor is ever touched on a guest's word. What the guest may execute and not
//! read is read as an instruction only, never as a table or an operand.

use super::Vm;
use crate::memory::window::Windows;
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use addr::{Gfn, Gpa, Gva, PAGE_SIZE};
use paging::Level;
use paging::guest::{GuestRights, Translation, walk};
use x86_decode::{Instruction, MAX_LENGTH, decode};
use zerocopy::IntoBytes;

/// Reads the aligned 8 bytes at `gpa` if the guest can.
fn read_entry(vm: &Vm<impl Vendor>, windows: &Windows, gpa: Gpa) -> Option<u64> {
    let frame = gpa.frame();
    if !vm.is_readable(frame) {
        return None;
    }
    Some(windows.open(frame.identity())?.read_u64(gpa.offset()))
}

/// Copies a table page if it is RAM.
pub fn read_table(
    vm: &Vm<impl Vendor>,
    windows: &Windows,
    gpa: Gpa,
    entries: &mut [u64; 512],
) -> bool {
    let frame = gpa.frame();
    let window = if vm.is_ram(frame) { windows.open(frame.identity()) } else { None };
    window.is_some_and(|window| window.read(0, entries.as_mut_bytes()) == size_of_val(entries))
}

/// Translates an address by the tables that the vCPU uses now; without paging, by itself.
pub fn translate(vcpu: &Vcpu<impl Vendor>, gva: Gva) -> Option<Translation> {
    let Some(levels) = vcpu.paging_levels() else {
        let rights = GuestRights { write: true, user: true, execute: true };
        let gpa = Gpa::new(gva.raw());
        return Some(Translation { gpa, level: Level::Page2M, rights, entry: gpa });
    };
    let root = Gpa::new(vcpu.control_register(3));
    walk(root, levels, gva, |at| read_entry(vcpu.vm, &vcpu.windows, at)).ok()
}

/// Copies bytes out of the guest's virtual memory, all or none.
pub fn read(vcpu: &Vcpu<impl Vendor>, gva: Gva, buffer: &mut [u8]) -> Option<()> {
    let read = read_some(vcpu, gva, buffer, |frame| vcpu.vm.is_readable(frame));
    (read == buffer.len()).then_some(())
}

/// Copies bytes out of the guest's virtual memory up to the first that is not mapped, or whose
/// frame `may_read` refuses.
fn read_some(
    vcpu: &Vcpu<impl Vendor>,
    gva: Gva,
    buffer: &mut [u8],
    may_read: impl Fn(Gfn) -> bool,
) -> usize {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = gva.plus(done as u64);
        let Some(gpa) = translate(vcpu, at).map(|translation| translation.gpa) else { break };
        if !may_read(gpa.frame()) {
            break;
        }
        let Some(window) = vcpu.windows.open(gpa.frame().identity()) else { break };
        done += window.read(gpa.offset(), rest);
    }
    done
}

/// The address whose fetch faulted at `gpa`: RIP, or the start of the next page if the instruction
/// reaches into that.
pub fn fetched_address(vcpu: &Vcpu<impl Vendor>, gpa: Gpa) -> Gva {
    let next = Gva::new(vcpu.rip().raw() | (PAGE_SIZE - 1)).plus(1);
    let leads_there = |gva| translate(vcpu, gva).is_some_and(|t| t.gpa.frame() == gpa.frame());
    if !leads_there(vcpu.rip()) && leads_there(next) { next } else { vcpu.rip() }
}

/// The instruction at RIP, if it is one that the hypervisor must understand.
pub fn fetch(vcpu: &Vcpu<impl Vendor>) -> Option<Instruction> {
    let mut bytes = [0; MAX_LENGTH];
    let count = read_some(vcpu, vcpu.rip(), &mut bytes, |frame| vcpu.vm.is_ram(frame));
    decode(bytes.get(..count)?, &vcpu.registers())
}
