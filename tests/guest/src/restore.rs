//! Job `restore`: what only requests protect, before and after these are made (`restore:ask`) or
//! come back with a saved state (`restore:back`).

use std::fs;
use std::io::{Error, Result as IoResult};

use abi::hypercall::{RESTORE_STATE, SAVE_STATE};
use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::console::Console;
use crate::counters::Counters;
use crate::{probe, sys};

const FILE: &str = "/proc/ravelin_probes/restore";

/// Attacks, has the kernel ask or say that its memory is back, and attacks again.
pub fn run(console: &Console, counters: &Counters, what: &str) -> Result<()> {
    let word = match what {
        "ask" => "ask",
        "back" => "restore",
        _ => bail!("restore:ask or restore:back, not `{what}`"),
    };
    sys::pin(0)?;
    probe::load_module()?;
    attack(console, "before")?;
    // From user mode nothing is restored.
    let user = counters.call(RESTORE_STATE, 0).map(u64::cast_signed);
    let kernel = errno(fs::write(FILE, word));
    console.report("restore-answers", &json!({ "user": user, "kernel": kernel }))?;
    attack(console, "after")?;
    let saved = counters.call(SAVE_STATE, 0).map(u64::cast_signed);
    console.report("state", &json!({ "answers": [saved] }))
}

fn attack(console: &Console, when: &str) -> Result<()> {
    for line in fs::read_to_string(FILE)?.lines() {
        let (name, result) =
            line.split_once('\t').with_context(|| format!("the module said `{line}`"))?;
        console.report("restore", &json!({ "when": when, "name": name, "result": result }))?;
    }
    Ok(())
}

/// 0, or the error that the module's hypercall was answered with.
fn errno(outcome: IoResult<()>) -> Option<i32> {
    outcome.map_or_else(|error: Error| error.raw_os_error(), |()| Some(0))
}
