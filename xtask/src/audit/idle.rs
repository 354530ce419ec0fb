//! Machines that are looked at when their first process has nothing to do.

use crate::boot::{Report, boot};
use anyhow::{Context, bail};
use ravelin::machine::Machine;
use serde_json::{Value, json};
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Lines, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Linux `PTI_USER_PGTABLE_BIT` in CR3: the tables are those of user mode.
const ISOLATED: u64 = 1 << 12;

/// Boots a machine whose job is to be idle, and takes a dump of all its memory then.
///
/// # Errors
/// It did not get so far, or QEMU took no dump.
pub fn dump_when_idle(
    name: &str,
    machine: Machine,
    paging: bool,
    path: &Path,
) -> anyhow::Result<Report> {
    when_idle(name, machine, |monitor| monitor.dump(paging, path))
}

/// Boots a machine whose job is to be idle, calls `look` then, and ends it.
///
/// # Errors
/// It did not get so far, or `look` failed.
pub fn when_idle(
    name: &str,
    mut machine: Machine,
    mut look: impl FnMut(&mut Monitor) -> anyhow::Result<()>,
) -> anyhow::Result<Report> {
    // A socket's path must be short.
    let socket = std::env::temp_dir().join(format!("ravelin-{}-{name}.qmp", std::process::id()));
    let server = format!("unix:{},server=on,wait=off", socket.display());
    machine.extra = vec!["-qmp".to_owned(), server];
    let mut looked = None;
    let report = boot(name, &machine, &mut |word, _| {
        if word == "idle" {
            looked = Some(Monitor::connect(&socket).and_then(|mut monitor| look(&mut monitor)));
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    let _ = std::fs::remove_file(&socket);
    looked
        .with_context(|| format!("the guest did not get ready, see {}", report.log.display()))??;
    Ok(report)
}

/// QEMU's control socket.
pub struct Monitor {
    socket: UnixStream,
    lines: Lines<BufReader<UnixStream>>,
}

impl Monitor {
    fn connect(socket: &Path) -> anyhow::Result<Self> {
        let socket = UnixStream::connect(socket)?;
        let lines = BufReader::new(socket.try_clone()?).lines();
        let mut monitor = Self { socket, lines };
        monitor.call(&json!({ "execute": "qmp_capabilities" }))?;
        Ok(monitor)
    }

    /// Gives a command and waits for what it returns.
    fn call(&mut self, command: &Value) -> anyhow::Result<Value> {
        writeln!(self.socket, "{command}")?;
        loop {
            let line = self.lines.next().context("QEMU closed its control socket")??;
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    /// Stops the machine while its first CPU has the kernel's page tables. Where these are isolated, it
    /// may have a process's own.
    ///
    /// # Errors
    /// QEMU refused, or that CPU stays in user mode.
    pub fn stop_in_kernel(&mut self) -> anyhow::Result<()> {
        for _ in 0..100 {
            self.call(&json!({ "execute": "stop" }))?;
            let registers = self.human("info registers")?;
            let cr3 = registers.split_once("CR3=").and_then(|(_, rest)| rest.get(..16));
            let cr3 = cr3.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            if cr3.context("QEMU shows no CR3")? & ISOLATED == 0 {
                return Ok(());
            }
            self.call(&json!({ "execute": "cont" }))?;
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("the guest is not idle")
    }

    /// Every leaf under CR3 of the first CPU, a line each, as QEMU finds them.
    ///
    /// # Errors
    /// QEMU refused.
    pub fn leaves(&mut self) -> anyhow::Result<String> {
        self.human("info tlb")
    }

    /// What a command for humans prints.
    fn human(&mut self, line: &str) -> anyhow::Result<String> {
        let command = json!({ "execute": "human-monitor-command",
                              "arguments": { "command-line": line } });
        let printed = self.call(&command)?;
        printed.as_str().map(str::to_owned).with_context(|| format!("`{line}` printed no text"))
    }

    /// Takes a dump of all memory, which the machine does not change meanwhile.
    ///
    /// # Errors
    /// QEMU refused, or the file could not be written.
    pub fn dump(&mut self, paging: bool, path: &Path) -> anyhow::Result<()> {
        let protocol = format!("file:{}", path.display());
        self.call(&json!({ "execute": "dump-guest-memory",
                           "arguments": { "paging": paging, "protocol": protocol } }))?;
        // QEMU lets its owner only read it.
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(())
    }
}
