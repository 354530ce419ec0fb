//! Job `modules`: the life of a module, again and again. Loaded, its init text is freed; its text, and
//! what was its init text, are attacked; unloaded, its pages are used for something else.

use anyhow::{Result, ensure};
use nix::kmod::{DeleteModuleFlags, delete_module};
use nix::sys::mman::ProtFlags;
use serde_json::json;

use crate::console::Console;
use crate::counters::Counters;
use crate::probe;
use crate::sys::{self, Pages, Program};

/// The attacks on pages of a module.
const ATTACKS: [&str; 6] = [
    "exec-module-data",
    "exec-module-alias",
    "module-text-pte",
    "init-text",
    "pte-flip",
    "stale-tlb",
];
/// Pages that are written between two lives: more than the module has, so that some were its own.
const RECYCLED: usize = 4096;

/// Runs the job.
pub fn run(console: &Console, counters: &Counters, rounds: u32) -> Result<()> {
    for round in 0..rounds {
        probe::load_module()?;
        probe::run(console, counters, probe::Which::Named(&ATTACKS))?;
        delete_module(c"ravelin_probes", DeleteModuleFlags::O_NONBLOCK)?;
        let mut pages = Pages::map(RECYCLED, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        let mark = round.to_le_bytes()[0] | 1;
        for page in 0..RECYCLED {
            pages.touch(page, mark);
        }
        // Programs are read into such pages, and executed.
        sys::fork_and_exec(Program::Own)?;
        let kept = (0..RECYCLED).all(|page| pages.peek(page) == mark);
        ensure!(kept, "a page did not keep what was written");
    }
    console.report("modules", &json!({"rounds": rounds}))
}
