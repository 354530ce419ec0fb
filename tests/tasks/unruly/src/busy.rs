//! Tasks that make one call again and again, with the arguments that give it most to do and nothing
//! to undo, until they are stopped: an interrupt that ends such a task comes in the middle of its call.

use crate::{UNKNOWN, WENT_ON};
use abi::task::{Call, CallError, MOST_PAGES, VECTOR};
use core::arch::global_asm;
use task_rt::{Mapping, Secret, log};

/// Where nothing of the task's is.
const FREE: u64 = 16 << 30;
const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;
/// Blocks of the largest secret that there can be.
const MOST_BLOCKS: u64 = 4;

// RDI: the call, RSI, RDX, RCX and R8: its arguments.
global_asm!(
    ".text",
    "busy_call:",
    "mov rbx, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "mov r10, r8",
    "2: mov rax, rbx",
    "int {vector}",
    "busy_returned:",
    "jmp 2b",
    vector = const VECTOR,
);

unsafe extern "C" {
    fn busy_call(call: u64, first: u64, second: u64, third: u64, fourth: u64) -> !;
    /// Where the call comes back to.
    fn busy_returned();
}

/// Makes the call whose number stands in `name`, behind `busy-`, until the task is stopped; comes
/// back only with a code, if it cannot begin.
pub fn for_ever(name: &str) -> u64 {
    let number = name.strip_prefix("busy-").and_then(|number| number.parse().ok());
    let Some(call) = number.and_then(Call::from_number) else { return UNKNOWN };
    let outcome = begin(call);
    log!("{name}: FAILED: it did not begin: {outcome:?}");
    WENT_ON
}

fn begin(call: Call) -> Result<(), CallError> {
    let last = FREE + (MOST_PAGES - 1) * PAGE;
    match call {
        // All of it is copied; only then is it found that its end is no character.
        Call::Log => {
            let mut line = [b'x'; 200];
            line[199] = 0xff;
            stay(call, [line.as_ptr().addr() as u64, 200, 0, 0])
        }
        // The last page is mapped, so that all others are, and are unmapped again.
        Call::Map => {
            let _last = Mapping::new(last, 1)?;
            stay(call, [FREE, MOST_PAGES, 1, 0])
        }
        // The last page is not mapped.
        Call::Unmap => {
            let _others = Mapping::new(FREE, MOST_PAGES - 1)?;
            stay(call, [FREE, MOST_PAGES, 0, 0])
        }
        // Where the second block would be a page is mapped, so that the first is, and is unmapped.
        Call::SecretMap => {
            let _second = Mapping::new(FREE + BLOCK, 1)?;
            let secret = Secret::new(2 * BLOCK)?;
            stay(call, [secret.handle(), FREE, 0, 0])
        }
        // There is no room for so many blocks besides the first.
        Call::SecretCreate => {
            let _first = Secret::new(BLOCK)?;
            stay(call, [MOST_BLOCKS * BLOCK, 0, 0, 0])
        }
        Call::SecretUnmap | Call::SecretDestroy => {
            let mut secret = Secret::new(BLOCK)?;
            let (unmapped, none) = (secret.handle(), secret.handle() ^ 1);
            let _mapped = if call == Call::SecretDestroy { Some(secret.map(FREE)?) } else { None };
            stay(call, [if call == Call::SecretDestroy { none } else { unmapped }, 0, 0, 0])
        }
        Call::Send | Call::GuestRead => stay(call, [0, 1, FREE, 8]),
        Call::Wait | Call::Exit => Err(CallError::Invalid),
    }
}

/// Says where the call comes back to, and makes it for ever.
fn stay(call: Call, [first, second, third, fourth]: [u64; 4]) -> ! {
    let returned = busy_returned as unsafe extern "C" fn();
    log!("its call comes back to {:#x}", returned as usize);
    // SAFETY: none of the arguments above leads to memory in use being unmapped or written.
    unsafe { busy_call(call as u64, first, second, third, fourth) }
}
