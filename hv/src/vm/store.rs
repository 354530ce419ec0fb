//! Stores that the hypervisor completes for the guest: decoded once, judged, performed through
//! windows, and the registers left as the instruction would have left them.

use super::guest;
use crate::svm::Vcpu;
use addr::{Gpa, Gva, PAGE_SIZE};
use arrayvec::ArrayVec;
use x86_decode::{Instruction, Operation};

/// Longest store that is completed, in bytes.
const MOST: usize = 16;

/// RCX, RSI and RDI by their encoding.
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// What an instruction is about to write.
pub struct Store {
    /// First byte written.
    pub gva: Gva,
    /// All bytes, in order of address.
    pub bytes: ArrayVec<u8, MOST>,
    /// Length of the instruction.
    length: u8,
    /// The registers that a string instruction moves.
    string: Option<Moved>,
}

struct Moved {
    source: bool,
    repeat: bool,
}

impl Store {
    /// The store that `instruction` makes, if it is a plain one of at most 16 bytes.
    pub fn of(vcpu: &Vcpu, instruction: &Instruction) -> Option<Self> {
        let mut buffer = [0; MOST];
        let (address, length, string) = match instruction.operation {
            Operation::Store { address, size, value } => {
                let length = usize::from(size);
                buffer.get_mut(..length)?.copy_from_slice(value.to_le_bytes().get(..length)?);
                (address, length, None)
            }
            Operation::StoreString {
                size,
                count,
                source,
                value,
                address,
                repeat,
                backward: false,
            } => {
                let length = usize::try_from(count.checked_mul(u64::from(size))?).ok()?;
                let bytes = buffer.get_mut(..length)?;
                match source {
                    Some(source) => guest::read(vcpu, Gva::new(source), bytes)?,
                    None => {
                        for element in bytes.chunks_mut(usize::from(size)) {
                            element.copy_from_slice(value.to_le_bytes().get(..element.len())?);
                        }
                    }
                }
                (address, length, Some(Moved { source: source.is_some(), repeat }))
            }
            _ => return None,
        };
        let bytes = buffer.get(..length)?.iter().copied().collect();
        Some(Self { gva: Gva::new(address), bytes, length: instruction.length, string })
    }

    /// Where the bytes go, if that is one piece of the guest's RAM.
    pub fn target(&self, vcpu: &Vcpu) -> Option<Gpa> {
        let last = (self.bytes.len() as u64).checked_sub(1)?;
        let first = guest::translate(vcpu, self.gva)?.gpa;
        let crosses = self.gva.offset() as u64 + last >= PAGE_SIZE;
        if crosses && guest::translate(vcpu, self.gva.plus(last))?.gpa != first.plus(last) {
            return None;
        }
        let is_ram = |gpa: Gpa| vcpu.vm.is_ram(gpa.frame());
        (is_ram(first) && is_ram(first.plus(last))).then_some(first)
    }

    /// Writes the bytes to `target`, which [`Store::target`] gave, and steps over the instruction.
    pub fn perform(&self, vcpu: &mut Vcpu, target: Gpa) {
        // RAM of the guest is never the hypervisor's own, so the windows open.
        let _ = vcpu.physical().write(target.identity(), &self.bytes);
        let length = self.bytes.len() as u64;
        if let Some(moved) = &self.string {
            vcpu.set_gpr(RDI, vcpu.gpr(RDI).wrapping_add(length));
            if moved.source {
                vcpu.set_gpr(RSI, vcpu.gpr(RSI).wrapping_add(length));
            }
            if moved.repeat {
                vcpu.set_gpr(RCX, 0);
            }
        }
        vcpu.advance(self.length);
    }

    /// The first 8 bytes as a number, for reports.
    pub fn value(&self) -> u64 {
        let mut value = [0; 8];
        for (to, from) in value.iter_mut().zip(&self.bytes) {
            *to = *from;
        }
        u64::from_le_bytes(value)
    }
}
