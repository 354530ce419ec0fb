//! The warden: a task that hears of every event and decides what the policy leaves to thought.

#![no_std]
#![no_main]
#![deny(unsafe_code)]

use abi::task::{Info, MessageKind};
use task_rt::{log, wait};

task_rt::main!(run);

fn run(info: &Info) -> u64 {
    log!("task {} is ready", info.task);
    loop {
        let Ok(message) = wait() else { return 1 };
        match MessageKind::from_number(message.kind) {
            Some(MessageKind::Lost) => log!("{} messages were lost", message.detail),
            _ => {}
        }
    }
}
