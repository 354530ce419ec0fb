//! Job `heki`: Heki's hypercalls, from the probe module and from here.

use std::fs;

use abi::hypercall::SAVE_STATE;
use anyhow::{Context as _, Result};
use serde_json::json;

use crate::console::Console;
use crate::counters::Counters;
use crate::{probe, sys};

const CASES: &str = "/proc/ravelin_probes/heki";
/// The hypercall that sets the rights of pages.
const PROTECT_MEMORY: u64 = 14;

/// Runs every case on CPU 0; the last makes `calls` random requests on each CPU, if that is given.
pub fn run(console: &Console, counters: &Counters, calls: Option<u32>) -> Result<()> {
    sys::pin(0)?;
    probe::load_module()?;
    if let Some(calls) = calls {
        fs::write(CASES, calls.to_string())?;
    }
    // An empty list is granted to the kernel.
    let answer = counters.call(PROTECT_MEMORY, 0).map(u64::cast_signed);
    console.report("heki-user", &json!({ "answer": answer }))?;
    for line in fs::read_to_string(CASES)?.lines() {
        let mut words = line.splitn(3, '\t');
        let mut word = || words.next().with_context(|| format!("the module said `{line}`"));
        let (name, result, detail) = (word()?, word()?, word()?);
        let case = json!({"name": name, "result": result, "detail": detail});
        console.report("heki", &case)?;
    }
    // The second has nothing new to say.
    let answers = [(); 2].map(|()| counters.call(SAVE_STATE, 0).map(u64::cast_signed));
    console.report("state", &json!({ "answers": answers }))?;
    Ok(())
}
