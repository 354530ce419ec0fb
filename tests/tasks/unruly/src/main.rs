//! A task that does what no task may. Its name, which is given when its image is made, says what:
//! one of the [`acts`] that end it, or a list of checks that it comes through. It logs a line
//! `CHECK: ok` or `CHECK: FAILED ...` for each, and `done` at the end.

#![no_std]
#![no_main]
#![expect(clippy::panic, reason = "one of the things that a task may do wrong")]

mod acts;
mod busy;
mod fuzz;
mod memory;
mod secrets;

use abi::task::{Call, CallError, INFO, Info, START, answer, image};
use core::fmt::Debug;
use task_rt::{log, raw, wait};

task_rt::main!(run);

/// Code of a task that should have been stopped.
const WENT_ON: u64 = 99;
/// Code of a task whose name stands for nothing.
const UNKNOWN: u64 = 98;

fn run(info: &Info) -> u64 {
    let name = image::name(&info.name).unwrap_or_default();
    if let Some(act) = acts::find(name) {
        act();
        log!("{name}: FAILED: it went on");
        return WENT_ON;
    }
    match name {
        "exit" => return 7,
        "panic" => panic!("as it was asked to"),
        "memory" => memory::calls(),
        "quota" => memory::quota(info),
        "secrets" => secrets::all(info),
        "deaf" => deaf(),
        "hold-secret" => secrets::hold(false),
        "spend-secret" => secrets::hold(true),
        _ if name.starts_with("fuzz") => fuzz::calls(name),
        _ if name.starts_with("busy-") => return busy::for_ever(name),
        _ => return UNKNOWN,
    }
    log!("done");
    0
}

/// As the warden: fetches messages to where none can be stored, then fetches them without ever
/// giving an answer.
fn deaf() -> ! {
    const BAD: [u64; 6] = [0, 1, START, INFO, 0x10_0000, u64::MAX - 8];
    for address in BAD {
        // SAFETY: nothing can be written there.
        let got = answer(unsafe { raw(Call::Wait as u64, [address, 0, 0, 0]) });
        check("a message to where none can be stored", got, Err(CallError::BadAddress));
    }
    loop {
        if wait().is_err() {
            log!("FAILED: no messages");
        }
    }
}

/// Logs whether `got` is what it should be.
fn check<T: PartialEq + Debug>(what: &str, got: T, expected: T) {
    if got == expected {
        log!("{what}: ok");
    } else {
        log!("{what}: FAILED: {got:?}, not {expected:?}");
    }
}
