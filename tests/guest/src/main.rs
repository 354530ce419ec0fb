//! Init of the test initramfs: does what `ravelin.job=` on the kernel command line says, then
//! powers off.
//!
//! Jobs, separated by `,` or `+` and run in order:
//!
//! | job | what it does |
//! |---|---|
//! | `probe` | loads `/ravelin_probes.ko` and runs every attack probe |
//! | `denied` | the same with those that only a stricter policy refuses |
//! | `stress:SECONDS` | keeps all CPUs busy and checks that nothing is lost |
//! | `trace:ROUNDS` | uses the function tracer |
//! | `bpf:ROUNDS` | makes packet filters and runs them |
//! | `load:NAME` | loads `/NAME.ko` and says where its text is |
//! | `modules:ROUNDS` | loads, attacks and unloads the probe module |
//! | `kexec`, `kexec:force` | tries to start another program in place of the kernel |
//! | `kexec:file`, `kexec:load`, `kexec:changed`, `kexec:tables` | starts another kernel, which does `ravelin.next=` in place of `ravelin.job=` |
//! | `bench`, `bench:quick` | runs the measured loops; `quick` a tenth of the rounds |
//! | `heki` | makes Heki's hypercalls, right ones and wrong ones |
//! | `restore:ask`, `restore:back` | asks for protection, or has it restored |
//! | `inside` | runs the `ravelin` command |
//! | `ret2dir` | has a planted bug of the hypervisor read, write and jump |
//! | `idle` | never ends |
//! | `reboot`, `poweroff` | does so at once |
//!
//! In the end all page tables in the machine are audited.
//!
//! What a program should read is a line `@@ WORD JSON` on the console (see [`console`]).
//! Everything here runs in one thread: other CPUs are used by processes.

mod bench;
mod bpf;
mod console;
mod counters;
mod heki;
mod inside;
mod keeper;
mod kexec;
mod modules;
mod probe;
mod restore;
mod ret2dir;
mod stress;
mod sys;
mod trace;

use abi::hypercall::{Counter, SupervisorMode};
use anyhow::{Context as _, Result, bail};
use console::Console;
use counters::Counters;
use hypercall::Audit;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use serde_json::json;
use std::path::Path;

/// Argument with which this program ends at once, for tests that need something to execute.
pub const EXIT_ARGUMENT: &str = "--exit";

fn main() -> Result<()> {
    let ticks = counters::ticks();
    // As the kernel's module loader this program finds nothing to load.
    let is_init = std::process::id() == 1;
    if let Some(result) = inside::touch_published(std::env::args().nth(1).as_deref()) {
        return result;
    }
    if !is_init || std::env::args().nth(1).as_deref() == Some(EXIT_ARGUMENT) {
        return Ok(());
    }
    let counters = Counters::detect()?;
    let exits = counters.exits();
    mount_all()?;
    let console = Console::open()?;
    let cpus = std::thread::available_parallelism()?.get();
    let mode = counters.read(Counter::SupervisorMode).and_then(SupervisorMode::from_number);
    console.report(
        "boot",
        &json!({
            "ticks": ticks,
            "exits": exits,
            "cpus": cpus,
            "supervisor_exec": mode.map(SupervisorMode::name),
        }),
    )?;
    let end = match run_jobs(&console, &counters, cpus) {
        Ok(end) => end,
        Err(error) => {
            console.report("error", &json!({"message": format!("{error:#}")}))?;
            End::PowerOff
        }
    };
    if let Some(audit) = counters.audit() {
        let runs = if let Audit::Passed { runs } = audit { runs } else { 0 };
        console.report(
            "audit",
            &json!({
                "ok": runs > 0,
                "runs": runs,
                "said": format!("{audit:?}"),
                "planted": counters.planted().is_some(),
            }),
        )?;
    }
    match end {
        End::PowerOff => match reboot(RebootMode::RB_POWER_OFF)? {},
        End::Reboot => match reboot(RebootMode::RB_AUTOBOOT)? {},
        End::PowerOffAlone => probe::power_off(),
    }
}

/// How the machine ends.
enum End {
    PowerOff,
    Reboot,
    /// Without the other CPUs, one of which is dead.
    PowerOffAlone,
}

fn mount_all() -> Result<()> {
    for (kind, target) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")]
    {
        std::fs::create_dir_all(target)?;
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {kind} on {target}"))?;
    }
    Ok(())
}

/// Runs the jobs of the command line; how the machine is to end.
fn run_jobs(console: &Console, counters: &Counters, cpus: usize) -> Result<End> {
    let command_line = std::fs::read_to_string("/proc/cmdline")?;
    let key = if Path::new("/successor").exists() { "ravelin.next=" } else { "ravelin.job=" };
    let jobs = command_line
        .split_whitespace()
        .rev()
        .find_map(|word| word.strip_prefix(key))
        .context("the kernel command line names no job: add ravelin.job=probe, for example")?;
    let mut end = End::PowerOff;
    let mut done = 0u32;
    for job in jobs.split([',', '+']) {
        let (name, argument) = job.split_once(':').unwrap_or((job, ""));
        match name {
            "probe" => {
                if !probe::run(console, counters, probe::Which::Usual)? {
                    end = End::PowerOffAlone;
                }
            }
            "denied" => _ = probe::run(console, counters, probe::Which::Denied)?,
            "stress" => {
                let seconds =
                    argument.parse().with_context(|| format!("`{job}`: how many seconds?"))?;
                stress::run(console, cpus, seconds)?;
            }
            "trace" => {
                let rounds =
                    argument.parse().with_context(|| format!("`{job}`: how many rounds?"))?;
                trace::run(console, rounds)?;
            }
            "kexec" => kexec::run(console, argument)?,
            "load" => modules::load(console, argument)?,
            "modules" => {
                let rounds =
                    argument.parse().with_context(|| format!("`{job}`: how many rounds?"))?;
                modules::run(console, counters, rounds)?;
            }
            "bpf" => {
                let rounds =
                    argument.parse().with_context(|| format!("`{job}`: how many rounds?"))?;
                bpf::run(console, rounds)?;
            }
            "heki" => {
                let calls = (!argument.is_empty()).then(|| argument.parse()).transpose();
                let calls = calls.with_context(|| format!("`{job}`: how many requests?"))?;
                heki::run(console, counters, calls)?;
            }
            "restore" => restore::run(console, counters, argument)?,
            "inside" => inside::run(console, counters)?,
            "bench" => bench::run(console, counters, argument == "quick")?,
            "ret2dir" => ret2dir::run(console, counters, cpus)?,
            "idle" => {
                console.report("idle", &json!({}))?;
                loop {
                    std::thread::park();
                }
            }
            "poweroff" => break,
            "reboot" => {
                end = End::Reboot;
                break;
            }
            _ => bail!(
                "unknown job `{job}`: use probe, denied, stress:SECONDS, trace:ROUNDS, bpf:ROUNDS, load:NAME, modules:ROUNDS, kexec, bench, heki, restore:ask, inside, idle, ..."
            ),
        }
        done += 1;
    }
    console.report("done", &json!({"jobs": done}))?;
    Ok(end)
}
