//! Job `inside`: runs the `ravelin` command of the initramfs as an administrator would, and tries
//! to change what it reads.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use abi::hypercall::Counter;
use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::console::Console;
use crate::counters::Counters;
use crate::{probe, sys};

const RAVELIN: &str = "/ravelin";
const MEMORY: &str = "/dev/mem";
const ADDRESS: &str = "127.0.0.1:9700";
/// Ravelin's CPUID leaf about the published region.
const LEAF: u32 = 0x4000_0001;
/// A user that is not root.
const NOBODY: u32 = 65534;

/// Arguments with which this program writes or executes the first published byte.
const WRITE_ARGUMENT: &str = "--write-published";
const EXECUTE_ARGUMENT: &str = "--execute-published";

/// Runs everything on CPU 0.
pub fn run(console: &Console, counters: &Counters) -> Result<()> {
    sys::pin(0)?;
    sys::raise_loopback()?;
    let read = |counter| counters.read(counter).context("there is no Ravelin");
    let start = read(Counter::Published)?;
    let cpuid = core::arch::x86_64::__cpuid(LEAF);
    console.report(
        "place",
        &json!({
            "start": start,
            "bytes": read(Counter::PublishedBytes)?,
            "cpuid": [cpuid.eax, cpuid.ebx, cpuid.ecx],
        }),
    )?;

    console.report(
        "attempt",
        &json!({ "write": touch(WRITE_ARGUMENT)?, "execute": touch(EXECUTE_ARGUMENT)? }),
    )?;
    let refused = probe::attempt("text-pte")?;
    console.report("attempt", &json!({ "text-pte": refused }))?;

    let last = read(Counter::LastEvent)?;
    for line in printed(&["events", "--json"])?.lines() {
        console.report("event", &serde_json::from_str(line)?)?;
    }
    console.report("events", &json!({ "at_least": last }))?;
    let journal = printed(&["events", "--journal"])?;
    console.report("journal", &json!({ "text": journal }))?;
    console.report("followed", &follow(read(Counter::LastEvent)?)?)?;

    console
        .report("status", &serde_json::from_str(&printed(&["status", "--json", "--audit"])?)?)?;
    console.report("metrics", &json!({ "text": printed(&["metrics"])? }))?;
    console.report("served", &json!({ "text": served()? }))?;

    console.report(
        "user",
        &json!({ "events": as_nobody("events")?, "status": as_nobody("status")? }),
    )?;
    Ok(())
}

/// What the command prints; it must succeed.
fn printed(arguments: &[&str]) -> Result<String> {
    let output = Command::new(RAVELIN).args(arguments).output().context("running /ravelin")?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("`ravelin {}` ended with {}: {error}", arguments.join(" "), output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Exit code and complaint of a command that is not root's.
fn as_nobody(command: &str) -> Result<Value> {
    let output =
        Command::new(RAVELIN).args([command, "--json"]).uid(NOBODY).gid(NOBODY).output()?;
    Ok(json!({
        "code": output.status.code(),
        "error": String::from_utf8_lossy(&output.stderr),
        "output": serde_json::from_slice::<Value>(&output.stdout).ok(),
    }))
}

/// The first violation that `events --follow` prints of those after event `last`, which is provoked
/// when everything older was printed.
fn follow(last: u64) -> Result<Value> {
    let mut child = Command::new(RAVELIN)
        .args(["events", "--follow", "--json"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut provoked = false;
    let found = loop {
        let line = lines.next().context("`ravelin events --follow` ended")??;
        let event: Value = serde_json::from_str(&line)?;
        if !provoked && event["sequence"].as_u64() >= Some(last) {
            probe::attempt("text-pte")?;
            provoked = true;
        } else if provoked && event["record"] == "violation" {
            break event;
        }
    };
    end(&mut child)?;
    Ok(found)
}

/// The metrics as the command serves them.
fn served() -> Result<String> {
    let mut child = Command::new(RAVELIN).args(["metrics", "--listen", ADDRESS]).spawn()?;
    let mut stream = loop {
        if let Ok(stream) = TcpStream::connect(ADDRESS) {
            break stream;
        }
        if let Some(status) = child.try_wait()? {
            bail!("`ravelin metrics --listen` ended with {status}");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: guest\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    end(&mut child)?;
    Ok(text)
}

/// Asks a command to end, as Ctrl-C does; it must end well.
fn end(child: &mut Child) -> Result<()> {
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT)?;
    let status = child.wait()?;
    if status.success() { Ok(()) } else { bail!("after SIGINT the command ended with {status}") }
}

/// Root touches the region from user mode, in a process of its own: the signal that ends it.
fn touch(argument: &str) -> Result<Option<i32>> {
    Ok(Command::new("/proc/self/exe").arg(argument).status()?.signal())
}

/// What that process does, if it is one.
pub fn touch_published(argument: Option<&str>) -> Option<Result<()>> {
    let touch = match argument? {
        WRITE_ARGUMENT => sys::write_at,
        EXECUTE_ARGUMENT => sys::execute_at,
        _ => return None,
    };
    let memory = OpenOptions::new().read(true).write(true).open(MEMORY);
    let start = Counters::detect().map(|counters| counters.read(Counter::Published));
    Some(start.and_then(|start| {
        sys::end_at_sigsegv()?;
        touch(&memory?, start.context("there is no Ravelin")?)
    }))
}
