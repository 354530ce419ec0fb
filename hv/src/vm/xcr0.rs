//! XSETBV, where it exits: the guest's own value, checked, since a bad one would fault in the
//! hypervisor (SDM 1, 13.3).

use crate::cpu::instructions::{cpuid, low_half, set_xcr0};
use crate::vcpu::Vcpu;
use crate::vendor::{Exception, Vendor};
use x86_decode::SimpleOp;

const STATE_COMPONENTS: u32 = 0xd;
const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const BOUNDS: u64 = 3 << 3;
const AVX512: u64 = 7 << 5;
const TILES: u64 = 3 << 17;

/// Sets XCR0 as the guest asks, or refuses with #GP like the CPU.
pub fn set(vcpu: &mut Vcpu<impl Vendor>) {
    let value = u64::from(low_half(vcpu.gpr(2))) << 32 | u64::from(low_half(vcpu.gpr(0)));
    if low_half(vcpu.gpr(1)) != 0 || !is_legal(value, supported()) {
        return vcpu.inject(Exception::GeneralProtection);
    }
    // SAFETY: the value was checked against all rules of the register; the hypervisor itself uses
    // no state that it governs but SSE, which is always on.
    unsafe { set_xcr0(value) };
    let _ = vcpu.advance_over(SimpleOp::Xsetbv);
}

fn supported() -> u64 {
    let answer = cpuid(STATE_COMPONENTS, 0);
    u64::from(answer.edx) << 32 | u64::from(answer.eax)
}

fn is_legal(value: u64, supported: u64) -> bool {
    let all_or_none = |group| value & group == 0 || value & group == group;
    value & !supported == 0
        && value & X87 != 0
        && (value & AVX == 0 || value & SSE != 0)
        && (value & AVX512 == 0 || value & AVX != 0)
        && all_or_none(BOUNDS)
        && all_or_none(AVX512)
        && all_or_none(TILES)
}
