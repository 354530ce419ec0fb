//! Job `trace`: uses the function tracer as people do: everything, on and off, then a few functions.
//!
//! The tracer is switched in a child process: where a hypervisor refuses the kernel's patches, the
//! kernel kills the process that asked for them, and this one lives on to say so.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::unistd::pipe;
use serde_json::json;
use std::fs::File;
use std::io::Read as _;

use crate::console::Console;
use crate::sys;

const FOLDER: &str = "/sys/kernel/tracing";
/// Functions that opening and writing files calls.
const FEW: [&str; 3] = ["vfs_read", "vfs_write", "do_sys_openat2"];
/// Enough for what is looked at, and soon read.
const BUFFER_KIB: &str = "64";

/// Runs the job.
pub fn run(console: &Console, rounds: u32) -> Result<()> {
    mount(Some("tracefs"), FOLDER, Some("tracefs"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting tracefs on {FOLDER}"))?;
    set("buffer_size_kb", BUFFER_KIB)?;
    let (lines, lines_in) = pipe()?;
    let child = sys::child(&lines_in, || {
        let mut seen = Seen::default();
        for _ in 0..rounds {
            let everything = traced("")?;
            seen.all += everything.len();
            ensure!(everything.len() > 100, "{} lines of all functions", everything.len());
            let few = traced(&FEW.join("\n"))?;
            let known = |line: &String| FEW.iter().any(|name| line.contains(name));
            ensure!(!few.is_empty(), "none of {FEW:?} was traced");
            ensure!(few.iter().all(known), "others than {FEW:?} were traced: {few:?}");
            seen.few += few.len();
        }
        nix::unistd::write(&lines_in, format!("{} {}", seen.all, seen.few).as_bytes())?;
        Ok(())
    })?;
    drop(lines_in);
    let ended = sys::wait(child);
    let mut text = String::new();
    File::from(lines).read_to_string(&mut text)?;
    let numbers: Vec<usize> = text.split(' ').filter_map(|number| number.parse().ok()).collect();
    let report = match (&ended, numbers.as_slice()) {
        (Ok(()), &[all, few]) => json!({"ok": true, "all": all, "few": few, "error": ""}),
        _ => json!({"ok": false, "all": 0, "few": 0, "error": format!("{text} {ended:?}")}),
    };
    console.report("trace", &report)
}

/// Lines of traces, counted.
#[derive(Default)]
struct Seen {
    all: usize,
    few: usize,
}

/// Traces the functions of `filter`, or all if it is empty, while files are opened, and switches the
/// tracer off; what the trace says.
fn traced(filter: &str) -> Result<Vec<String>> {
    set("set_ftrace_filter", filter)?;
    set("current_tracer", "function")?;
    for _ in 0..3 {
        fs::read("/proc/version")?;
    }
    set("tracing_on", "0")?;
    let trace = fs::read_to_string(path("trace"))?;
    set("current_tracer", "nop")?;
    set("tracing_on", "1")?;
    Ok(trace.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect())
}

fn set(file: &str, value: &str) -> Result<()> {
    fs::write(path(file), value).with_context(|| format!("writing `{value}` to {file}"))
}

fn path(file: &str) -> PathBuf {
    Path::new(FOLDER).join(file)
}
