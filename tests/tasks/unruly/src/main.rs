//! A task that does what no task may.

#![no_std]
#![no_main]

use abi::task::Info;

task_rt::main!(run);

fn run(info: &Info) -> u64 {
    task_rt::log!("task {}: hello", info.task);
    7
}
