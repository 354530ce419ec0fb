//! Descriptor tables: loads are judged by the pins, stores are performed for the guest.

use super::guest;
use super::registers::{attempt, selector};
use super::violation::is_let_through;
use crate::vcpu::Vcpu;
use crate::vendor::{Exception, Vendor};
use abi::event::ViolationKind;
use addr::Gva;
use integrity::Rights;
use integrity::state::View;
use x86_decode::{Destination, Operation, Table};

/// LGDT, LIDT, LLDT or LTR, after the lock; where loads and stores exit together, SGDT, SIDT, SLDT
/// or STR too.
pub fn access(vcpu: &mut Vcpu<impl Vendor>) {
    let Some(instruction) = guest::fetch(vcpu) else { return };
    let Some(pins) = vcpu.pins else { return };
    let allowed = match instruction.operation {
        Operation::LoadTable { table, address } => {
            let mut bytes = [0; 10];
            let Some(()) = guest::read(vcpu, Gva::new(address), &mut bytes) else { return };
            let [l0, l1, base @ ..] = bytes;
            let (base, limit) = (u64::from_le_bytes(base), u32::from(u16::from_le_bytes([l0, l1])));
            let (pin, number) = if table == Table::Gdtr { (pins.gdtr, 0) } else { (pins.idtr, 1) };
            // A table without an entry is of no use but to leave: `machine_kexec` loads it before it
            // jumps (Linux, arch/x86/kernel/machine_kexec_64.c).
            let leaves = table == Table::Idtr && limit == 0;
            let kind = if leaves { ViolationKind::Kexec } else { ViolationKind::DescriptorTable };
            let attempt = attempt(kind, number, pin.base, base);
            let through = pin.allows(base, limit) || is_let_through(vcpu, attempt);
            if through {
                vcpu.set_table(table, base, limit);
            }
            through
        }
        Operation::LoadSelector { table, selector: operand } => {
            let Some(value) = selector(vcpu, operand) else { return };
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
            let bytes = bytes.get(..length).unwrap_or_default();
            let done = write(vcpu, Gva::new(address), bytes).is_some();
            if !done {
                vcpu.inject(Exception::GeneralProtection);
            }
            done
        }
    }
}

/// Writes where the guest may write by itself: pages that are data, mapped for who asks.
fn write(vcpu: &Vcpu<impl Vendor>, start: Gva, bytes: &[u8]) -> Option<()> {
    // Held from the judgement to the write, so that no page is locked in between.
    let memory = vcpu.vm.memory.lock();
    let target = |gva| {
        let translation = guest::translate(vcpu, gva)?;
        let frame = translation.gpa.frame();
        let page = memory.page(frame)?;
        (translation.rights.write
            && (translation.rights.user || vcpu.cpl() < 3)
            && vcpu.vm.is_ram(frame)
            && page.allows(View::Kernel).contains(Rights::WRITE))
        .then_some(translation.gpa)
    };
    for (offset, _) in (0..).zip(bytes) {
        target(start.plus(offset))?;
    }
    for (offset, byte) in (0..).zip(bytes) {
        vcpu.physical().write(target(start.plus(offset))?.identity(), &[*byte]).ok()?;
    }
    Some(())
}
