//! The calls, one function each but those that [`crate::Mapping`] and [`crate::Secret`] make.

use abi::task::{Call, CallError, Message, Said, VECTOR, answer};
use core::arch::asm;

/// What every call answers: a number by call, or why it was refused.
pub type Answer = Result<u64, CallError>;

/// Makes any call with any arguments, in the order RDI, RSI, RDX, R10, and gives RAX.
///
/// # Safety
/// Memory that the call writes or unmaps is the caller's, and no reference to it is in use.
pub unsafe fn raw(number: u64, arguments: [u64; 4]) -> u64 {
    let [first, second, third, fourth] = arguments;
    let rax;
    // SAFETY: the hypervisor keeps all registers but RAX. The caller vouches for memory.
    unsafe {
        asm!("int {vector}", vector = const VECTOR, inlateout("rax") number => rax,
             in("rdi") first, in("rsi") second, in("rdx") third, in("r10") fourth);
    }
    rax
}

/// Makes a known call.
///
/// # Safety
/// As for [`raw`].
pub(crate) unsafe fn make(call: Call, arguments: [u64; 4]) -> Answer {
    // SAFETY: as the caller vouches.
    answer(unsafe { raw(call as u64, arguments) })
}

/// An address and a length as arguments of a call.
fn bytes(bytes: &[u8]) -> (u64, u64) {
    (bytes.as_ptr().addr() as u64, bytes.len() as u64)
}

/// Puts a line on the event channel; it is cut at 200 bytes.
///
/// # Errors
/// The line is longer than [`abi::task::MOST_BYTES`].
pub fn log_line(line: &str) -> Answer {
    let (address, length) = bytes(line.as_bytes());
    // SAFETY: the call only reads.
    unsafe { make(Call::Log, [address, length, 0, 0]) }
}

/// Tells the hypervisor something.
///
/// # Errors
/// Not allowed to this task, or there is no such token or value.
pub fn send(said: Said, token: u64, value: u64) -> Answer {
    // SAFETY: the call takes no memory.
    unsafe { make(Call::Send, [said as u64, token, value, 0]) }
}

/// Waits for the next message.
///
/// # Errors
/// None is known; a task that meets one has nothing to wait for.
pub fn wait() -> Result<Message, CallError> {
    let mut message = core::mem::MaybeUninit::<Message>::zeroed();
    // SAFETY: the call writes one message, which the storage is for.
    unsafe { make(Call::Wait, [message.as_mut_ptr().addr() as u64, 0, 0, 0]) }?;
    // SAFETY: zeroed, or written by the call; any bytes are a message.
    Ok(unsafe { message.assume_init() })
}

/// Copies from `offset` of the guest memory that the latest message granted.
///
/// # Errors
/// The grant is over, or does not reach so far; the guest has made the page secret.
pub fn guest_read(grant: u32, offset: u64, into: &mut [u8]) -> Answer {
    let (address, length) = (into.as_mut_ptr().addr() as u64, into.len() as u64);
    // SAFETY: the call writes into a slice that is ours alone.
    unsafe { make(Call::GuestRead, [u64::from(grant), offset, address, length]) }
}

/// Ends the task.
pub fn exit(code: u64) -> ! {
    // SAFETY: the call takes no memory.
    unsafe { raw(Call::Exit as u64, [code, 0, 0, 0]) };
    // A hypervisor that goes on after this is not the one that this was written for.
    // SAFETY: raises #UD, which ends the task too.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// The time-stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: RDTSC reads a counter, which CR4.TSD leaves to tasks.
    unsafe { core::arch::x86_64::_rdtsc() }
}
