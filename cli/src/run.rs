//! `ravelin run`: one machine on this terminal.

use crate::args::{self, Run};
use anyhow::{Context, ensure};
use jiff::Timestamp;
use ravelin::events::{Body, Record};
use ravelin::machine::{self, Boot, Console, Emulator, Ended, Machine, Protection};
use ravelin::report::{self, Kernels};
use ravelin::state::Parts;
use ravelin::{check, policy, state};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Runs the machine and says how it ended.
///
/// # Errors
/// Bad input; nothing was started.
pub fn run(args: &Run) -> anyhow::Result<ExitCode> {
    let machine = machine(args)?;
    let manifests = machine.prepare()?;
    let mut kernels = Kernels::of(&manifests);
    let mut file = match &args.events {
        Some(path) => Some(
            File::create(path)
                .with_context(|| format!("cannot write events to {}", path.display()))?,
        ),
        None => None,
    };
    let mut lost = None;
    let mut parts = Parts::default();
    let mut on_event = |record: &Record| {
        let symbols = kernels.at(record);
        if let Body::State(part, bytes) = &record.body {
            // One in hundreds; what comes of them is told.
            if let Some(state) = parts.push(*part, bytes) {
                keep(args.state.as_deref(), &state);
            }
        } else {
            anstream::eprintln!("{}", report::line(record, symbols));
        }
        if let Some(file) = &mut file {
            let written = writeln!(file, "{}", report::json(record, symbols, Timestamp::now()));
            lost = lost.take().or(written.err());
        }
    };
    let outcome = machine.run(&manifests, Console::Inherit, &mut on_event)?;
    if let Some(error) = lost {
        anstream::eprintln!("ravelin: not every event could be written: {error}");
    }
    if outcome.garbage > 0 {
        anstream::eprintln!(
            "ravelin: {} bytes on the event channel were no record",
            outcome.garbage
        );
    }
    Ok(exit_code(&outcome.ended))
}

/// Writes a state to the file that was named for it.
fn keep(file: Option<&Path>, state: &[u8]) {
    let Some(file) = file else {
        return anstream::eprintln!("ravelin: the guest's state was saved; keep it with --state");
    };
    match std::fs::write(file, state) {
        Ok(()) => anstream::eprintln!("ravelin: the guest's state is in {}", file.display()),
        Err(error) => {
            anstream::eprintln!("ravelin: cannot write the state to {}: {error}", file.display());
        }
    }
}

fn machine(args: &Run) -> anyhow::Result<Machine> {
    let protection = if args.bare {
        let given = args.tasks.warden.is_some() || !args.tasks.task.is_empty();
        ensure!(!given, "a task needs the hypervisor: leave out --bare, or --warden and --task");
        Protection::Bare
    } else {
        let hypervisor = check::hypervisor(args.hypervisor.as_deref())?;
        let file = policy::load_if_given(args.policy.as_deref())?;
        Protection::Ravelin {
            policy: file.policy,
            kexec: file.kernels,
            manifest: args.manifest.clone(),
            restore: args.restore.as_deref().map(state::check).transpose()?,
            tasks: args.tasks.find(&hypervisor)?,
            hypervisor,
        }
    };
    Ok(Machine {
        kernel: args.kernel.clone(),
        initrd: args.initrd.clone(),
        append: machine::with_console(&args.append),
        boot: Boot::Direct,
        cpus: args.smp,
        memory: args.mem,
        protection,
        emulator: match args.emulator {
            args::Emulator::Qemu => Emulator::Qemu,
            args::Emulator::Bochs => {
                Emulator::Bochs { program: check::bochs(args.bochs.as_deref())? }
            }
        },
        accel: args.accel.into(),
        cpu: args.cpu.clone(),
        icount: None,
        no_reboot: args.no_reboot,
        timeout: args.timeout.map(Duration::from_secs),
        extra: args.extra.clone(),
    })
}

fn exit_code(ended: &Ended) -> ExitCode {
    let (code, message) = match ended {
        Ended::PowerOff | Ended::Enough => (0, None),
        Ended::Failed(reason) => (1, Some(reason.as_str())),
        Ended::Reset => (3, Some("the guest reset the machine")),
        Ended::Stopped => (4, Some("the machine was stopped, as the policy says")),
        Ended::TimedOut => (124, Some("the time is over")),
        Ended::Interrupted => (130, Some("interrupted")),
    };
    if let Some(message) = message {
        anstream::eprintln!("ravelin: {message}");
    }
    ExitCode::from(code)
}
