//! Descriptor tables: loads are judged by the pins, stores are performed for the guest.

use super::registers::{attempt, selector};
use super::violation::{Attempt, is_let_through};
use super::{fault, guest, kexec, promote};
use crate::vcpu::Vcpu;
use crate::vendor::{Exception, Vendor};
use abi::event::ViolationKind;
use addr::{Gpa, Gva};
use integrity::Rights;
use integrity::state::{Page, PageState, View};
use x86_decode::{Destination, Operation, Selector, Table};

/// LGDT, LIDT, LLDT or LTR, after the lock; where loads and stores exit together, SGDT, SIDT, SLDT
/// or STR too.
pub fn access(vcpu: &mut Vcpu<impl Vendor>) {
    let Some(instruction) = guest::fetch(vcpu) else { return };
    let Some(pins) = vcpu.pins else { return };
    let allowed = match instruction.operation {
        Operation::LoadTable { table, address } => {
            let mut bytes = [0; 10];
            let gva = Gva::new(address);
            let Some(()) = guest::read(vcpu, gva, &mut bytes) else {
                return fault::unread_operand(vcpu, gva, bytes.len() as u64);
            };
            let [l0, l1, base @ ..] = bytes;
            let (base, limit) = (u64::from_le_bytes(base), u32::from(u16::from_le_bytes([l0, l1])));
            let (pin, number) = if table == Table::Gdtr { (pins.gdtr, 0) } else { (pins.idtr, 1) };
            // A table without an entry is of no use but to leave: `machine_kexec` loads it before it
            // jumps (Linux, arch/x86/kernel/machine_kexec_64.c).
            let leaves = limit == 0 && (table == Table::Idtr || vcpu.leaves);
            vcpu.leaves |= leaves && kexec::may_leave(vcpu.vm);
            let kind = if leaves { ViolationKind::Kexec } else { ViolationKind::DescriptorTable };
            let attempt = attempt(kind, number, pin.base, base);
            let leaving = leaves && vcpu.leaves;
            let through = leaving || pin.allows(base, limit) || is_let_through(vcpu, attempt);
            if through {
                vcpu.set_table(table, base, limit);
            }
            through
        }
        Operation::LoadSelector { table, selector: operand } => {
            let Some(value) = selector(vcpu, operand) else {
                if let Selector::Memory(address) = operand {
                    fault::unread_operand(vcpu, Gva::new(address), 2);
                }
                return;
            };
            let (pin, number) = if table == Table::Ldtr { (pins.ldtr, 2) } else { (pins.tr, 3) };
            // An allowed LLDT is skipped: the register has its value. LTR is never allowed, not
            // even with the same selector: the descriptor behind it may be another by now.
            (table == Table::Ldtr && pin.allows(value)) || {
                let (old, new) = (u64::from(pin.selector), u64::from(value));
                is_let_through(vcpu, attempt(ViolationKind::DescriptorTable, number, old, new))
            }
        }
        Operation::StoreTable { table, destination } => store(vcpu, table, destination),
        _ => return,
    };
    if allowed {
        vcpu.advance(instruction.length);
    }
}

/// Stores a register; says whether the guest goes on behind the instruction.
fn store(vcpu: &mut Vcpu<impl Vendor>, table: Table, destination: Destination) -> bool {
    let mut bytes = [0; 10];
    let (low, base) = match table {
        Table::Gdtr | Table::Idtr => {
            let (base, limit) = vcpu.table(table);
            let [l0, l1, ..] = limit.to_le_bytes();
            (u16::from_le_bytes([l0, l1]), Some(base))
        }
        Table::Ldtr | Table::Tr => (vcpu.selector(table), None),
    };
    let (first, rest) = bytes.split_at_mut(2);
    first.copy_from_slice(&low.to_le_bytes());
    let length = if let Some(base) = base {
        rest.copy_from_slice(&base.to_le_bytes());
        10
    } else {
        2
    };
    match destination {
        Destination::Register { gpr, size } => {
            let number = usize::from(gpr);
            let kept = if size == 2 { vcpu.gpr(number) & !0xffff } else { 0 };
            vcpu.set_gpr(number, kept | u64::from(low));
            true
        }
        Destination::Memory(address) => {
            let (start, bytes) = (Gva::new(address), bytes.get(..length).unwrap_or_default());
            match write(vcpu, start, bytes) {
                Ok(()) => return true,
                Err(Unwritten::Guest) => vcpu.inject(Exception::GeneralProtection),
                Err(Unwritten::Page(gva, gpa, page)) => refuse(vcpu, gva, gpa, page),
            }
            false
        }
    }
}

/// The guest may not write this page; one of unlocked code becomes data and it tries again.
fn refuse(vcpu: &mut Vcpu<impl Vendor>, gva: Gva, gpa: Gpa, page: Page) {
    let vm = vcpu.vm;
    if page.state == PageState::Code && !page.withholds(Rights::WRITE) {
        return promote::demote(vcpu, &mut vm.memory.lock(), gpa.frame());
    }
    let attempt = Attempt {
        gva: Some(gva),
        gpa: Some(gpa),
        size: 1,
        old: fault::old_value(vcpu, gpa),
        ..Attempt::new(fault::write_kind(page.state))
    };
    if is_let_through(vcpu, attempt) {
        fault::release(vcpu, &mut vm.memory.lock(), gpa);
    }
}

/// Why a store was not made.
enum Unwritten {
    /// The guest's own tables do not allow it.
    Guest,
    /// The second stage does not, on this page.
    Page(Gva, Gpa, Page),
}

/// Writes where the guest may write by itself: pages that are data, mapped for who asks.
fn write(vcpu: &Vcpu<impl Vendor>, start: Gva, bytes: &[u8]) -> Result<(), Unwritten> {
    // Held from the judgement to the write, so that no page is locked in between.
    let memory = vcpu.vm.memory.lock();
    let target = |gva| {
        let translation = guest::translate(vcpu, gva)
            .filter(|found| found.rights.write && (found.rights.user || vcpu.cpl() < 3))
            .ok_or(Unwritten::Guest)?;
        let gpa = translation.gpa;
        let page = memory.page(gpa.frame()).filter(|_| vcpu.vm.is_ram(gpa.frame()));
        match page.ok_or(Unwritten::Guest)? {
            page if page.allows(View::Kernel).contains(Rights::WRITE) => Ok(gpa),
            page => Err(Unwritten::Page(gva, gpa, page)),
        }
    };
    for (offset, _) in (0..).zip(bytes) {
        target(start.plus(offset))?;
    }
    for (offset, byte) in (0..).zip(bytes) {
        let gpa = target(start.plus(offset))?;
        vcpu.physical().write(gpa.identity(), &[*byte]).map_err(|_| Unwritten::Guest)?;
    }
    Ok(())
}
