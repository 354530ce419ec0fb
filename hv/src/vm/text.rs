//! Writes to locked kernel text: performed by the hypervisor if they are a legal step at a patch
//! site of the manifest ([`integrity::patch`]), refused otherwise.
//!
//! The VM's memory lock is held from the judgement to the write, and the guest cannot write the
//! page itself, so what was judged is what is there.

use super::KernelPlace;
use super::fault::{old_value, release};
use super::guest;
use super::memory::Memory;
use super::violation::{Attempt, report};
use crate::svm::{EventInjection, Vcpu};
use abi::event::{Verdict, ViolationKind};
use abi::hypercall::Counter;
use addr::{Gpa, Gva, PAGE_SIZE};
use arrayvec::ArrayVec;
use integrity::patch;
use x86_decode::{Instruction, Operation};

/// Longest write that can be a patch, in bytes.
const MOST: usize = 16;

/// What an instruction is about to write.
struct Store {
    gva: Gva,
    bytes: ArrayVec<u8, MOST>,
    /// The source of a string instruction moves on with its destination.
    string: Option<String>,
}

struct String {
    from_memory: bool,
    repeat: bool,
}

/// RCX, RSI and RDI by their encoding.
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// A write at `gpa`, inside locked text.
pub fn write(vcpu: &mut Vcpu, memory: &mut Memory, gpa: Gpa) {
    let instruction = guest::fetch(vcpu);
    let store = instruction.and_then(|instruction| store_of(vcpu, &instruction));
    let kernel = vcpu.vm.kernel();
    if let (Some(instruction), Some(store), Some(kernel)) = (instruction, &store, kernel)
        && let Some(offset) = offset_of(vcpu, store, kernel)
        && patch_is_legal(vcpu, store, kernel, offset)
    {
        let start = kernel.gpa.plus(offset).identity();
        // Locked text is guest RAM, so a window on it opens.
        let _ = vcpu.physical().write(start, &store.bytes);
        finish(vcpu, &instruction, store);
        vcpu.shared().count(Counter::Patch);
        return;
    }
    let attempt = describe(vcpu, gpa, store.as_ref(), kernel);
    match report(vcpu, attempt) {
        Verdict::Log => release(vcpu, memory, gpa),
        _ => vcpu.inject(EventInjection::GENERAL_PROTECTION),
    }
}

/// The bytes that the instruction writes, if it is a plain store of at most [`MOST`].
fn store_of(vcpu: &Vcpu, instruction: &Instruction) -> Option<Store> {
    let mut bytes = ArrayVec::new();
    match instruction.operation {
        Operation::Store { address, size, value } => {
            bytes.try_extend_from_slice(value.to_le_bytes().get(..usize::from(size))?).ok()?;
            Some(Store { gva: Gva::new(address), bytes, string: None })
        }
        Operation::StoreString { size, count, source, value, address, repeat, backward: false } => {
            let length = usize::try_from(count.checked_mul(u64::from(size))?).ok()?;
            if length > MOST {
                return None;
            }
            let mut buffer = [0; MOST];
            let buffer = buffer.get_mut(..length)?;
            match source {
                Some(source) => guest::read(vcpu, Gva::new(source), buffer)?,
                None => {
                    for chunk in buffer.chunks_mut(usize::from(size)) {
                        chunk.copy_from_slice(value.to_le_bytes().get(..chunk.len())?);
                    }
                }
            }
            bytes.try_extend_from_slice(buffer).ok()?;
            let string = String { from_memory: source.is_some(), repeat };
            Some(Store { gva: Gva::new(address), bytes, string: Some(string) })
        }
        _ => None,
    }
}

/// Distance of the first byte from `_text`, if all bytes lie there in one piece.
fn offset_of(vcpu: &Vcpu, store: &Store, kernel: KernelPlace) -> Option<u64> {
    let last = (store.bytes.len() as u64).checked_sub(1)?;
    let translate = |gva| {
        let translation = guest::translate(vcpu, gva)?;
        translation.rights.write.then_some(translation.gpa)
    };
    let first = translate(store.gva)?;
    let crosses = store.gva.offset() as u64 + last >= PAGE_SIZE;
    if crosses && translate(store.gva.plus(last))? != first.plus(last) {
        return None;
    }
    let offset = first.raw().checked_sub(kernel.gpa.raw())?;
    let text = vcpu.vm.manifest.header().text;
    (text.contains(offset) && text.contains(offset + last)).then_some(offset)
}

fn patch_is_legal(vcpu: &Vcpu, store: &Store, kernel: KernelPlace, offset: u64) -> bool {
    let current = |offset: u64| {
        let gpa = kernel.gpa.plus(offset);
        let mut byte = [0];
        vcpu.windows.open(gpa.frame().identity())?.read(gpa.offset(), &mut byte);
        Some(byte[0])
    };
    patch::judge(&vcpu.vm.manifest, offset, current, &store.bytes).is_ok()
}

/// Leaves the registers as the instruction would have.
fn finish(vcpu: &mut Vcpu, instruction: &Instruction, store: &Store) {
    let length = store.bytes.len() as u64;
    if let Some(string) = &store.string {
        vcpu.set_gpr(RDI, vcpu.gpr(RDI).wrapping_add(length));
        if string.from_memory {
            vcpu.set_gpr(RSI, vcpu.gpr(RSI).wrapping_add(length));
        }
        if string.repeat {
            vcpu.set_gpr(RCX, 0);
        }
    }
    vcpu.advance(instruction.length);
}

fn describe(vcpu: &Vcpu, gpa: Gpa, store: Option<&Store>, kernel: Option<KernelPlace>) -> Attempt {
    let offset = kernel.and_then(|kernel| gpa.raw().checked_sub(kernel.gpa.raw()));
    let length = store.map_or(1, |store| store.bytes.len() as u64);
    let at_site = offset.is_some_and(|offset| patch::covers(&vcpu.vm.manifest, offset, length));
    let mut new = [0; 8];
    if let Some(store) = store {
        for (to, from) in new.iter_mut().zip(&store.bytes) {
            *to = *from;
        }
    }
    Attempt {
        gva: store.map(|store| store.gva),
        gpa: Some(gpa),
        size: u32::try_from(length).unwrap_or(u32::MAX),
        old: old_value(vcpu, gpa),
        new: u64::from_le_bytes(new),
        ..Attempt::new(if at_site { ViolationKind::Patch } else { ViolationKind::WriteText })
    }
}
