//! Job `trace`: uses the function tracer as people do: all functions, a few, the graph of a few, and a
//! kprobe at the entry of one, which the kernel makes by the tracer too, and kprobes further inside, which
//! are breakpoints.
//!
//! The tracer is switched in a child process: where a hypervisor refuses the kernel's patches, the
//! kernel kills the process that asked for them, and this one lives on to say so. It may not wait
//! for that one: when the kernel closes the dead process's files, that waits for the tracer's lock,
//! which the same process holds.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe};
use serde_json::json;

use crate::console::Console;
use crate::sys;

const FOLDER: &str = "/sys/kernel/tracing";
/// Functions that opening and writing files calls.
const FEW: [&str; 3] = ["vfs_read", "vfs_write", "do_sys_openat2"];
/// Name of the kprobe.
const PROBE: &str = "ravelin_entry";
/// Enough for what is looked at, and soon read.
const BUFFER_KIB: &str = "64";

/// `PF_EXITING` of Linux, include/linux/sched.h.
const EXITING: u32 = 4;
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often a process may be seen ending before it is given up.
const PATIENCE: u32 = 25;

/// Runs the job.
pub fn run(console: &Console, rounds: u32) -> Result<()> {
    mount(Some("tracefs"), FOLDER, Some("tracefs"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting tracefs on {FOLDER}"))?;
    set("buffer_size_kb", BUFFER_KIB)?;
    let (lines, lines_in) = pipe()?;
    let child = sys::child(&lines_in, || {
        let mut seen = Seen::default();
        for _ in 0..rounds {
            let everything = traced("function", "")?;
            seen.all += everything.len();
            ensure!(everything.len() > 100, "{} lines of all functions", everything.len());
            let few = traced("function", &FEW.join("\n"))?;
            let known = |line: &String| FEW.iter().any(|name| line.contains(name));
            ensure!(!few.is_empty(), "none of {FEW:?} was traced");
            ensure!(few.iter().all(known), "others than {FEW:?} were traced: {few:?}");
            let graph = traced("function_graph", FEW[0])?;
            ensure!(graph.iter().any(|line| line.contains(FEW[0])), "no graph: {graph:?}");
            let probed = probed()?;
            ensure!(probed.iter().any(|line| line.contains(PROBE)), "no probe hit: {probed:?}");
            let inside = probed_inside()?;
            seen.few += few.len() + graph.len() + probed.len() + inside;
        }
        nix::unistd::write(&lines_in, format!("{} {}", seen.all, seen.few).as_bytes())?;
        Ok(())
    })?;
    drop(lines_in);
    let ended = wait(child);
    let mut text = String::new();
    match ended {
        Ok(()) => _ = File::from(lines).read_to_string(&mut text)?,
        Err(error) => text = format!("{error:#}"),
    }
    let numbers: Vec<usize> = text.split(' ').filter_map(|number| number.parse().ok()).collect();
    let report = match numbers.as_slice() {
        &[all, few] => json!({"ok": true, "all": all, "few": few, "error": ""}),
        _ => json!({"ok": false, "all": 0, "few": 0, "error": text}),
    };
    console.report("trace", &report)
}

/// Waits for a child, but not for one that hangs in its own end.
fn wait(child: Pid) -> Result<()> {
    let mut ending = 0;
    while ending < PATIENCE {
        match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
            // What it has to say is in the pipe, whatever its code.
            WaitStatus::Exited(..) => return Ok(()),
            WaitStatus::StillAlive => {}
            other => bail!("it ended with {other:?}"),
        }
        ending += u32::from(is_ending(child)?);
        std::thread::sleep(LOOK_EVERY);
    }
    bail!("it was killed, and hangs")
}

/// Whether the kernel is about to end a process.
fn is_ending(child: Pid) -> Result<bool> {
    let stat = fs::read_to_string(format!("/proc/{child}/stat"))?;
    // The name, which may hold spaces, stands in parentheses; the flags are the seventh word behind it.
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6));
    let flags: u32 = flags.context("no flags in its stat")?.parse()?;
    Ok(flags & EXITING != 0)
}

/// Lines of traces, counted: of all functions, and of everything else.
#[derive(Default)]
struct Seen {
    all: usize,
    few: usize,
}

/// Traces the functions of `filter`, or all if it is empty, while files are opened, and switches the
/// tracer off; what the trace says.
fn traced(tracer: &str, filter: &str) -> Result<Vec<String>> {
    set("set_ftrace_filter", filter)?;
    set("current_tracer", tracer)?;
    let lines = watched();
    set("current_tracer", "nop")?;
    set("tracing_on", "1")?;
    lines
}

/// The same by a kprobe at the entry of one function.
fn probed() -> Result<Vec<String>> {
    let enable = format!("events/kprobes/{PROBE}/enable");
    set("kprobe_events", &format!("p:{PROBE} {}", FEW[0]))?;
    set(&enable, "1")?;
    let lines = watched();
    set(&enable, "0")?;
    // Opening it anew removes all probes.
    set("kprobe_events", "")?;
    set("tracing_on", "1")?;
    lines
}

/// How many kprobes are put into the function.
const INSIDE: usize = 6;
/// How far inside it, in bytes.
const FAR: usize = 64;

/// kprobes at the first instructions behind the entry, all at once; how often one was hit.
fn probed_inside() -> Result<usize> {
    let mut names = Vec::new();
    // The kernel refuses an offset that is inside an instruction; the first five bytes are the tracer's.
    for offset in 5..FAR {
        let name = format!("{PROBE}_{offset}");
        let definition = format!("p:{name} {}+{offset}\n", FEW[0]);
        if names.len() < INSIDE && append("kprobe_events", &definition).is_ok() {
            names.push(name);
        }
    }
    ensure!(names.len() == INSIDE, "only {} kprobes were accepted", names.len());
    set("events/kprobes/enable", "1")?;
    let lines = watched();
    set("events/kprobes/enable", "0")?;
    set("kprobe_events", "")?;
    set("tracing_on", "1")?;
    let lines = lines?;
    for name in &names[..2] {
        ensure!(
            lines.iter().any(|line| line.contains(name.as_str())),
            "no hit of {name}: {lines:?}"
        );
    }
    Ok(lines.len())
}

fn append(file: &str, value: &str) -> Result<()> {
    let mut file = File::options().append(true).open(path(file))?;
    Ok(file.write_all(value.as_bytes())?)
}

/// Opens files, stops the trace and says what is in it.
fn watched() -> Result<Vec<String>> {
    for _ in 0..3 {
        fs::read("/proc/version")?;
    }
    set("tracing_on", "0")?;
    let trace = fs::read_to_string(path("trace"))?;
    Ok(trace.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect())
}

fn set(file: &str, value: &str) -> Result<()> {
    fs::write(path(file), value).with_context(|| format!("writing `{value}` to {file}"))
}

fn path(file: &str) -> PathBuf {
    Path::new(FOLDER).join(file)
}
