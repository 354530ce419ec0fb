//! What CPUID tells a guest where it exits: the CPU's own answers without VMX and SVM, and, if the
//! policy announces Ravelin, a hypervisor leaf of its own, and KVM's behind it: Heki's guest part
//! looks for that, in steps of 0x100 (Linux, `hypervisor_cpuid_base`). It says that none of KVM's
//! features are there.

use crate::cpu::instructions::{CpuidResult, cpuid, low_half};
use crate::publish;
use abi::hypercall::{FEATURE_LEAF, feature};
use x86_defs::cr4;

const FEATURES: u32 = 1;
// Bits that AMD's CPUs have clear: VMX and SMX, and what makes an Intel CPU itself write to
// physical addresses that the guest names, which the second stage does not bind.
const VMX: u32 = 5;
const X2APIC: u32 = 21;
const HYPERVISOR_PRESENT: u32 = 31;
const SMX: u32 = 6;
const HARDWARE_FEEDBACK: u32 = 19;
const THREAD_DIRECTOR: u32 = 23;
const PROCESSOR_TRACE: u32 = 25;
const POWER: u32 = 6;
const TRACE: u32 = 0x14;
const EXTENDED_FEATURES: u32 = 7;
const AMD_FEATURES: u32 = 0x8000_0001;
const SVM_FEATURES: u32 = 0x8000_000a;
/// First of the leaves that belong to the hypervisor.
const HYPERVISOR: u32 = 0x4000_0000;
/// Where the published region is: first frame in EBX, bytes in ECX, version of the layout in EAX.
const HYPERVISOR_PUBLISHED: u32 = HYPERVISOR + 1;
const KVM: u32 = HYPERVISOR + 0x100;
const KVM_FEATURES: u32 = KVM + 1;
const HYPERVISOR_LAST: u32 = 0x4000_ffff;

/// The answer to CPUID with EAX = `leaf`, ECX = `subleaf` in a guest with this CR4.
pub fn answer(leaf: u32, subleaf: u32, announce: bool, guest_cr4: impl Fn() -> u64) -> CpuidResult {
    if announce && (HYPERVISOR..=HYPERVISOR_LAST).contains(&leaf) {
        return hypervisor_leaf(leaf);
    }
    let mut answer = cpuid(leaf, subleaf);
    match leaf {
        // Two bits mirror the CR4 of who executes CPUID, which is the hypervisor here.
        FEATURES => {
            set_bit(&mut answer.ecx, 27, guest_cr4() & cr4::OSXSAVE != 0);
            set_bit(&mut answer.ecx, VMX, false);
            set_bit(&mut answer.ecx, SMX, false);
            if announce {
                set_bit(&mut answer.ecx, HYPERVISOR_PRESENT, true);
                // Under KVM Linux switches to it, which the pinned APIC_BASE forbids.
                set_bit(&mut answer.ecx, X2APIC, false);
            }
        }
        EXTENDED_FEATURES if subleaf == 0 => {
            set_bit(&mut answer.ecx, 4, guest_cr4() & cr4::PKE != 0);
            set_bit(&mut answer.ebx, PROCESSOR_TRACE, false);
        }
        AMD_FEATURES => set_bit(&mut answer.ecx, 2, false),
        POWER => {
            set_bit(&mut answer.eax, HARDWARE_FEEDBACK, false);
            set_bit(&mut answer.eax, THREAD_DIRECTOR, false);
        }
        SVM_FEATURES | TRACE => answer = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
        _ => {}
    }
    answer
}

fn set_bit(register: &mut u32, bit: u32, value: bool) {
    *register = *register & !(1 << bit) | u32::from(value) << bit;
}

fn hypervisor_leaf(leaf: u32) -> CpuidResult {
    let text = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    match leaf {
        HYPERVISOR => CpuidResult {
            eax: FEATURE_LEAF,
            ebx: text(b"Rave"),
            ecx: text(b"linR"),
            edx: text(b"avel"),
        },
        HYPERVISOR_PUBLISHED => CpuidResult {
            eax: low_half(published::VERSION),
            ebx: low_half(publish::frames().start.raw()),
            ecx: low_half(published::BYTES as u64),
            edx: 0,
        },
        FEATURE_LEAF => CpuidResult { eax: feature::SECRET_PAGES, ebx: 0, ecx: 0, edx: 0 },
        KVM => CpuidResult {
            eax: KVM_FEATURES,
            ebx: text(b"KVMK"),
            ecx: text(b"VMKV"),
            edx: text(b"M\0\0\0"),
        },
        _ => CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
    }
}
