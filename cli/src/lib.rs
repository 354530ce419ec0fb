//! What the `ravelin` command is made of. `xtask` boots its test machines through the same code:
//! [`machine::Machine`] is one emulated machine, with or without Ravelin in it.

mod bochs;
pub mod cache;
pub mod check;
pub mod dump_file;
pub mod events;
pub mod grub;
pub mod machine;
mod notice;
pub mod policy;
mod qemu;
mod qmp;
pub mod report;
mod scratch;
pub mod state;
mod symbols;
pub mod table;
pub mod task;
mod watch;
