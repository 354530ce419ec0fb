//! Stock kernels in a real Debian system: what legitimate self-modification there is must go on under
//! the standard policy, without an event and without a complaint of the kernel.
//!
//! The system boots from a disk with Debian's own initial file system and systemd, up to the login
//! prompt, and then runs the checks of `tests/userland/check.sh`.

mod image;
mod table;

pub use image::PACKAGES;
pub use table::Matrix;

use crate::apt::{Apt, UNSTABLE};
use crate::boot::{self, Report, boot};
use crate::build::On;
use crate::e2e::{Case, Place, case, no_violation};
use crate::packages::{Flavour, kernel};
use abi::policy::Policy;
use anyhow::{bail, ensure};
use image::{Userland, userland};
use ravelin::machine::Machine;
use serde::Deserialize;
use serde_json::Value;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Duration;

/// The releases of Debian whose newest kernels are run, each in its own system: 12 with Linux 6.1, 13
/// with 6.12, and unstable.
const SUITES: [&str; 3] = ["bookworm", "trixie", UNSTABLE];

/// How much is done.
#[derive(Clone, Copy)]
struct Extent {
    checks: &'static [&'static str],
    /// For `stress-ng`.
    seconds: u64,
    /// Which of `test_bpf`'s tests run; all of them if nothing.
    bpf: Option<&'static str>,
}

/// The whole matrix's.
const FULL: Extent = Extent {
    checks: &[
        "login",
        "modules",
        "test_static_keys",
        "function_tracer",
        "tracepoints",
        "nftables",
        "test_bpf",
        "stress_ng",
        "kernel",
    ],
    seconds: 120,
    bpf: None,
};

/// What fits into every test run.
const SHORT: Extent = Extent {
    checks: &["login", "test_static_keys", "nftables", "test_bpf", "stress_ng", "kernel"],
    seconds: 1,
    bpf: Some("0,40"),
};

/// What the system says of one check.
#[derive(Clone, Deserialize)]
struct Check {
    name: String,
    ok: bool,
    /// Seconds since the guest was started.
    start: f64,
    end: f64,
    detail: String,
}

/// One case for each kernel, or only the first, and briefly, unless `full`. What came of it goes into
/// `matrix`.
pub fn cases(full: bool, install: bool, matrix: &Rc<Matrix>) -> Vec<Case> {
    let (suites, extent) = if full { (&SUITES[..], FULL) } else { (&SUITES[..1], SHORT) };
    let new_case = |suite: &'static str| {
        let matrix = Rc::clone(matrix);
        case(format!("userland-{suite}"), move |name, place| {
            run(name, place, suite, install, extent, &matrix)
        })
    };
    suites.iter().copied().map(new_case).collect()
}

fn run(
    name: &str,
    place: &Place<'_>,
    suite: &str,
    install: bool,
    extent: Extent,
    matrix: &Matrix,
) -> anyhow::Result<()> {
    let kernel = kernel(&Apt::of(suite)?, Flavour::Generic)?;
    let system = userland(suite, &kernel, install)?;
    let mut machine = boot::machine(
        place.built.emulator(place.on)?,
        &kernel.image,
        &system.initrd,
        "",
        place.built.ravelin(Policy::default()),
    );
    prepare(&mut machine, place.on, &system, extent);
    let report = boot(name, &machine, &mut |word, value| {
        if word == "check" {
            show(value);
        }
        ControlFlow::Continue(())
    })?;
    let checks: Vec<Check> = report.all("check")?;
    let problem = judge(&report, &checks, extent).err();
    matrix.add(&kernel.release, place.on, &report, &checks, problem.is_none());
    problem.map_or(Ok(()), Err)
}

/// Tells who waits what has been done; the matrix takes hours.
fn show(value: &Value) {
    if let Ok(check) = Check::deserialize(value) {
        let Check { name, ok, start, end, detail } = check;
        let verdict = if ok { "ok" } else { "FAILED" };
        anstream::eprintln!(
            "          {name}: {verdict}, {:.0} s of the guest, {detail}",
            end - start
        );
    }
}

/// Gives the machine its disk and its command line.
fn prepare(machine: &mut Machine, on: On, system: &Userland, extent: Extent) {
    let disk = system.disk.display();
    machine.append = format!(
        "console=ttyS0,115200 panic=-1 root=LABEL=ravelin log_buf_len=8M ravelin.checks={} \
         ravelin.seconds={}",
        extent.checks.join(","),
        extent.seconds
    );
    if let Some(range) = extent.bpf {
        machine.append += &format!(" ravelin.bpf={range}");
    }
    // Time goes by instructions on both, so that a kernel on a busy host does not see itself stand
    // still: in Bochs 20 ns each. What a machine writes to the disk is lost.
    match on {
        On::Qemu => {
            machine.icount = Some(1);
            let drive = format!("file={disk},format=raw,if=virtio,snapshot=on");
            machine.extra = vec!["-drive".to_owned(), drive];
        }
        On::Bochs => {
            // To trace all functions of a kernel takes a thousand million instructions in one go, 20 s
            // at this pace; Linux takes 21 for a stall.
            machine.append += " clocksource=hpet rcupdate.rcu_cpu_stall_timeout=60";
            machine.extra = vec![
                "ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15".to_owned(),
                format!("ata1-master: type=disk, mode=volatile, path={disk}"),
            ];
        }
    }
    machine.timeout = Some(Duration::from_secs(1200 + 60 * extent.seconds));
}

/// Everything must have been done, and nothing been refused or complained of.
fn judge(report: &Report, checks: &[Check], extent: Extent) -> anyhow::Result<()> {
    if let Some(check) = checks.iter().find(|check| !check.ok) {
        bail!("{} failed: {}", check.name, check.detail);
    }
    no_violation(report)?;
    report.finished()?;
    ensure!(
        checks.iter().map(|check| &check.name).eq(extent.checks),
        "not all checks ran, see {}",
        report.log.display()
    );
    let locked = report.locks().last().is_some_and(|lock| lock.stage == 2);
    ensure!(locked, "text and read-only data were not both locked: {:?}", report.locks());
    let log = std::fs::read_to_string(&report.log)?;
    ensure!(log.contains("ravelin login:"), "there was no login prompt");
    match complaint(&log) {
        Some(line) => bail!("the kernel complained: {line}"),
        None => Ok(()),
    }
}

/// The first line in which a kernel says that something is wrong with it.
fn complaint(log: &str) -> Option<&str> {
    const MARKS: [&str; 6] =
        ["cut here", "WARNING: CPU", "BUG: ", "Oops: ", "general protection fault", "Call Trace:"];
    log.lines().find(|line| MARKS.iter().any(|mark| line.contains(mark)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_found() {
        for line in [
            "[  121.02] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [check.sh:234]",
            "[    1.00] ------------[ cut here ]------------",
            "[    1.00] Oops: general protection fault, maybe for address 0x0: 0000 [#1] PREEMPT",
        ] {
            assert_eq!(complaint(&format!("fine\n{line}\nfine")), Some(line));
        }
        let harmless = "[    0.44] Speculative Return Stack Overflow: WARNING: See https://";
        assert_eq!(complaint(harmless), None);
    }
}
