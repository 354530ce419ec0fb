//! How `ravelin run` itself ends: its exit code, and nothing left running behind it.

use crate::e2e::{Case, Place, case};
use crate::packages::Flavour::Cloud;
use crate::shell::guest_folder;
use anyhow::{Context, bail, ensure};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The tests.
pub fn cases() -> Vec<Case> {
    vec![case("exit-power-off", power_off), case("exit-interrupt", interrupt)]
}

/// `ravelin run` as a user types it, with the guest doing `job`.
fn ravelin_run(name: &str, place: &Place<'_>, job: &str) -> anyhow::Result<Command> {
    let guest = place.built.guest(Cloud)?;
    let mut command = Command::new(&place.built.ravelin);
    command
        .args(["run", "--emulator", &place.on.to_string()])
        .args(["--append", &format!("quiet ravelin.job={job}"), "--kernel"])
        .arg(&guest.kernel.image)
        .arg("--initrd")
        .arg(&guest.initrd)
        .arg("--events")
        .arg(guest_folder("logs")?.join(format!("{name}.jsonl")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    Ok(command)
}

/// Power-off is exit code 0, and the lock is in the events file.
fn power_off(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let mut child = ravelin_run(name, place, "poweroff")?.spawn()?;
    drop(child.stdout.take());
    let code = wait(&mut child, Duration::from_secs(60))?;
    ensure!(code == Some(0), "the exit code is {code:?}, not 0");
    let events = std::fs::read_to_string(guest_folder("logs")?.join(format!("{name}.jsonl")))?;
    let locked = events.lines().any(|line| line.contains(r#""record":"locked","stage":2"#));
    ensure!(locked, "no event says that the kernel was locked");
    Ok(())
}

/// Ctrl-C while the guest runs is exit code 130, and the emulator is gone.
fn interrupt(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let mut child = ravelin_run(name, place, "idle")?.spawn()?;
    let console = child.stdout.take().context("no console")?;
    let runs = BufReader::new(console).lines().map_while(Result::ok).any(|l| l.contains("@@ idle"));
    ensure!(runs, "the guest did not get to its job");
    let emulators = children(child.id())?;
    ensure!(!emulators.is_empty(), "no emulator runs");
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    ensure!(signal.success(), "the signal could not be sent");
    let code = wait(&mut child, Duration::from_secs(30))?;
    ensure!(code == Some(130), "the exit code is {code:?}, not 130");
    for emulator in emulators {
        let gone = !std::path::Path::new(&format!("/proc/{emulator}")).exists();
        ensure!(gone, "process {emulator} is left behind");
    }
    Ok(())
}

/// Processes started by `parent`.
fn children(parent: u32) -> anyhow::Result<Vec<u32>> {
    let list = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    Ok(list.split_whitespace().filter_map(|id| id.parse().ok()).collect())
}

fn wait(child: &mut Child, patience: Duration) -> anyhow::Result<Option<i32>> {
    let start = Instant::now();
    while start.elapsed() < patience {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill()?;
    bail!("it did not end within {} seconds", patience.as_secs())
}
