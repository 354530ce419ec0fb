//! From the first instruction to a task's main function, and what becomes of a panic.

use crate::{exit, log};
use abi::task::Info;
use core::arch::global_asm;
use core::panic::PanicInfo;
use freestanding as _;

// RDI is the address of the page of facts. RSP is the top of the stack, a multiple of 16, as the
// System V ABI wants it before a call.
global_asm!(
    ".globl _start",
    ".type _start, @function",
    "_start:",
    "xor ebp, ebp",
    "call {start}",
    "ud2",
    start = sym first,
);

unsafe extern "Rust" {
    /// Named by [`main!`](crate::main).
    safe fn task_main(info: &Info) -> u64;
}

/// Code of a task that met a hypervisor of another version.
const OTHER_VERSION: u64 = 100;
/// Code of a task that panicked.
const PANICKED: u64 = 101;

/// # Safety
/// `info` is the address of a page of facts that stays as it is.
unsafe extern "C" fn first(info: *const Info) -> ! {
    // SAFETY: as the caller, the hypervisor, vouches.
    let info = unsafe { &*info };
    if info.version != Info::VERSION {
        log!("made for version {} of the calls, not {}", Info::VERSION, info.version);
        exit(OTHER_VERSION);
    }
    exit(task_main(info))
}

/// Makes `fn(&Info) -> u64` the main function of a task; the number is its exit code.
#[macro_export]
macro_rules! main {
    ($main:path) => {
        #[expect(unsafe_code, reason = "the name is known to the runtime alone")]
        #[unsafe(no_mangle)]
        extern "Rust" fn task_main(info: &$crate::abi::task::Info) -> u64 {
            let main: fn(&$crate::abi::task::Info) -> u64 = $main;
            main(info)
        }
    };
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    log!("panicked: {info}");
    exit(PANICKED)
}
