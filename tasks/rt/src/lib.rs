//! What a task needs to run in ring 3 under the hypervisor: its start, safe forms of the calls,
//! memory that is given back when it is dropped, and lines for the event channel.
//!
//! A task is a `no_std`, `no_main` program that names its main function by [`main!`]:
//!
//! ```ignore
//! task_rt::main!(run);
//! fn run(info: &abi::task::Info) -> u64 { task_rt::log!("hello"); 0 }
//! ```
//!
//! All of a task's `unsafe` is here. What is safe here stays safe whatever the hypervisor answers:
//! memory that a call maps was not mapped before, or the call fails.

#![no_std]

mod call;
mod line;
mod memory;
mod secret;
mod start;

pub use abi;
pub use call::{exit, guest_read, log_line, raw, send, ticks, wait};
pub use line::Line;
pub use memory::Mapping;
pub use secret::{Mapped, Secret};
