//! Job `load`: a stock module that stays. Job `modules`: the life of the probe module, again and again. Loaded, its
//! init text is freed; its text, and what was its init text, are attacked; unloaded, its pages are used
//! for something else.

use std::fs::File;

use anyhow::{Context as _, Result, ensure};
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
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

/// Loads the kernel's own module `/NAME.ko`, and reports the address of its text.
pub fn load(console: &Console, name: &str) -> Result<()> {
    let (path, text) = (format!("/{name}.ko"), format!("/sys/module/{name}/sections/.text"));
    let file = File::open(&path).context(path)?;
    finit_module(file, c"", ModuleInitFlags::empty())?;
    let address = std::fs::read_to_string(&text).context(text)?;
    let digits = address.trim().trim_start_matches("0x");
    console.report("loaded", &json!({"text": u64::from_str_radix(digits, 16)?}))
}

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
