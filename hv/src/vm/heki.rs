//! Heki's hypercalls ([`heki`]), for a guest that asks for its own protection.
//!
//! The kernel asks at the end of its boot, before its first process. That is the moment that the
//! lock waits for, so the first request arms it, and what is asked for comes on top.

use super::Stage;
use super::gate::Pages;
use super::lock;
use super::separation::Separation;
use crate::report;
use crate::task::{self, inbox::Post, turn};
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use abi::event::Verdict;
use abi::task::{HekiExit, MessageKind};
use addr::{FrameRange, Gpa};
use heki::Refusal;
use heki::control::{self, Request};
use heki::list::Buffer;
use heki::memory::{Rules, protect};
use spin::mutex::SpinMutex;
use x86_decode::Mode;
use zerocopy::IntoBytes;

/// RBX, RCX and RDX by their encoding, in KVM's order of arguments.
const ARGUMENTS: [usize; 3] = [3, 1, 2];

/// The copy of the request that is judged; one at a time.
static REQUEST: SpinMutex<Buffer> = SpinMutex::new(Buffer::new());

/// Answers hypercall `number`: the value for RAX.
pub fn handle(vcpu: &mut Vcpu<impl Vendor>, number: u64) -> u64 {
    let known = matches!(number, heki::LOCK_CONTROL_REGISTER | heki::PROTECT_MEMORY);
    let answer = if !known || !vcpu.vm.policy.announce {
        Err(Refusal::NoSuchCall)
    } else if vcpu.cpl() != 0 {
        Err(Refusal::NotPermitted)
    } else if number == heki::LOCK_CONTROL_REGISTER {
        lock_register(vcpu)
    } else {
        protect_memory(vcpu)
    };
    answer.unwrap_or_else(Refusal::to_rax)
}

/// Outside of 64-bit mode an argument has 32 bits.
fn arguments(vcpu: &Vcpu<impl Vendor>) -> [u64; 3] {
    let mask = if vcpu.registers().mode == Mode::Bits64 { u64::MAX } else { u64::from(u32::MAX) };
    ARGUMENTS.map(|register| vcpu.gpr(register) & mask)
}

fn arm(vcpu: &mut Vcpu<impl Vendor>) {
    if vcpu.vm.stage() == Stage::Boot {
        lock::arm(vcpu);
    }
}

fn lock_register(vcpu: &mut Vcpu<impl Vendor>) -> Result<u64, Refusal> {
    let vm = vcpu.vm;
    let arguments = arguments(vcpu);
    let judge = |vcpu: &Vcpu<_>| {
        control::judge(arguments, |register| {
            (vcpu.control_register(register), vm.requested.pin(register))
        })
    };
    if judge(vcpu)? == Request::Version {
        return Ok(heki::VERSION);
    }
    arm(vcpu);
    if let Request::Pin { register, pin } = judge(vcpu)? {
        ask_warden(vcpu, register, pin.must_be_one | pin.must_be_zero)?;
    }
    // Held from the judgement to the change, so that no other vCPU pins the opposite.
    let _memory = vm.memory.lock();
    if let Request::Pin { register, pin } = judge(vcpu)? {
        vm.requested.add(register, pin);
    }
    Ok(0)
}

/// Asks the warden, if there is one, whether bits of a register may be pinned. Without an answer
/// they may: a pin takes rights away, and gives none.
fn ask_warden(vcpu: &mut Vcpu<impl Vendor>, register: u8, value: u64) -> Result<(), Refusal> {
    if !task::has_warden() {
        return Ok(());
    }
    let exit =
        HekiExit { reason: if register == 0 { HekiExit::CR0 } else { HekiExit::CR4 }, value };
    let post = Post::new(MessageKind::Heki, 1, turn::new_token(), exit.as_bytes());
    match turn::ask(vcpu, post) {
        None | Some(Verdict::Log) => Ok(()),
        Some(Verdict::Deny) => Err(Refusal::NotPermitted),
        Some(Verdict::Stop) => {
            report::fatal(format_args!("stopped by the warden: a guest pins CR{register}"))
        }
    }
}

fn protect_memory<V: Vendor>(vcpu: &mut Vcpu<V>) -> Result<u64, Refusal> {
    let vm = vcpu.vm;
    let [first, ..] = arguments(vcpu);
    let mut request = REQUEST.lock();
    let list = request.read(Gpa::new(first), |from, to| copy(vcpu, from, to))?;
    arm(vcpu);
    let rules = Rules {
        execute_only: V::executes_unread(),
        separates_execution: vm.separation() != Separation::None,
        exec: vm.policy.heki_exec,
    };
    let mut memory = vm.memory.lock();
    let mut pages = Pages { memory: &mut memory, vm, index: vcpu.index };
    let answer = protect(&list, &vm.ram, rules, &mut pages);
    vcpu.request_flush();
    answer.map(|()| 0)
}

/// Copies what is at `from`, if all of it is RAM that the guest can read.
fn copy(vcpu: &Vcpu<impl Vendor>, from: Gpa, to: &mut [u8]) -> bool {
    let length = to.len() as u64;
    let wraps = from.checked_add(length).is_none();
    let mut frames = FrameRange::covering(from, length).iter();
    !wraps
        && frames.all(|frame| vcpu.vm.is_readable(frame))
        && vcpu.physical().read(from.identity(), to).is_ok()
}
