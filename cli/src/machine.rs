//! One emulated machine, from its first instruction to its end.
//!
//! The emulator runs as a child, and `watch` hears it. When [`Machine::run`] returns, the child is
//! gone and so are the inputs of the threads that listened. How an emulator is told what to run is
//! in a module of its own, such as `qemu`.

use crate::events::Record;
use crate::scratch::Scratch;
use crate::watch::{Input, Message, PATIENCE, Run, lines, pieces};
use crate::{bochs, cache, check, qemu, state, task};
use abi::policy::Policy;
use anyhow::{Context, ensure};
use boot_info::{MOST_TASKS, Role};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use std::ops::ControlFlow;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// What is to run.
#[derive(Clone, Debug)]
pub struct Machine {
    /// A bzImage.
    pub kernel: PathBuf,
    /// Its initial file system.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub append: String,
    /// Who loads it.
    pub boot: Boot,
    /// CPUs, 1 to [`abi::MAX_CPUS`].
    pub cpus: usize,
    /// Bytes of memory, at least [`check::MIN_MEMORY`].
    pub memory: u64,
    /// Ravelin, or nothing.
    pub protection: Protection,
    /// What emulates it.
    pub emulator: Emulator,
    /// How instructions are executed.
    pub accel: Accel,
    /// Another CPU model than the one that suits, in the emulator's words: `EPYC-v4,-svm` for
    /// QEMU, `corei7_skylake_x,-vmx` for Bochs.
    pub cpu: Option<String>,
    /// QEMU's clock is a count of instructions, each as many nanoseconds as 2 to the power of this,
    /// so that counts repeat exactly. One CPU only.
    /// Bochs always counts: its time-stamp counter advances by one with every instruction.
    pub icount: Option<u8>,
    /// A reset by the guest ends the run.
    pub no_reboot: bool,
    /// The run is ended after this time.
    pub timeout: Option<Duration>,
    /// Further arguments for the emulator.
    pub extra: Vec<String>,
}

/// What emulates the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Emulator {
    /// QEMU, as it is installed: an AMD CPU with SVM.
    Qemu,
    /// Bochs: an Intel CPU with VMX. With one CPU every run is the same.
    Bochs {
        /// The program, version 3.0 or later; see [`check::bochs`].
        program: PathBuf,
    },
}

/// Who loads the kernel.
#[derive(Clone, Debug)]
pub enum Boot {
    /// The emulator.
    Direct,
    /// The loader on this disc image, which was made from the same kernel, manifest and policy.
    Iso(PathBuf),
}

/// What stands between the kernel and the machine.
#[derive(Clone, Debug)]
pub enum Protection {
    /// Nothing.
    Bare,
    /// Ravelin.
    Ravelin {
        /// The hypervisor image.
        hypervisor: PathBuf,
        /// What it enforces.
        policy: Policy,
        /// The kernels that the policy names for kexec, as many as it says.
        kexec: Vec<PathBuf>,
        /// A manifest to use in place of the kernel's own.
        manifest: Option<PathBuf>,
        /// What runs beside the guest.
        tasks: Tasks,
        /// A protection state to restore.
        restore: Option<PathBuf>,
    },
}

/// Files of tasks, each an image or an ELF program.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    /// The task that answers for the policy; without it the hypervisor decides alone.
    pub warden: Option<PathBuf>,
    /// Others, at most [`MOST_TASKS`].
    pub others: Vec<PathBuf>,
}

impl Tasks {
    /// Checks them, and gives their images with their roles as boot modules.
    ///
    /// # Errors
    /// One of them is no task, or there are too many.
    pub fn load(&self) -> anyhow::Result<Vec<(Role, Vec<u8>)>> {
        let most = self.others.len() <= MOST_TASKS;
        ensure!(most, "there can be {MOST_TASKS} tasks besides the warden, not more");
        let warden = self.warden.iter().map(|path| (Role::Warden, path));
        let others = self.others.iter().map(|path| (Role::Task, path));
        warden.chain(others).map(|(role, path)| Ok((role, task::load(path)?))).collect()
    }
}

/// The manifests that a machine starts with.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// The kernel's; empty when bare.
    pub first: Vec<u8>,
    /// Those of the kernels that may follow it.
    pub kexec: Vec<Vec<u8>>,
}

/// How instructions are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// Emulated; needs nothing.
    Tcg,
    /// By the CPU; under Ravelin that takes nested virtualization.
    Kvm,
}

/// Where the guest's serial console goes.
pub enum Console<'a> {
    /// To our own standard input and output.
    Inherit,
    /// To a function, line by line, which can end the run; the guest reads nothing.
    Capture(&'a mut dyn FnMut(&str) -> ControlFlow<()>),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest reset the machine, and it was not to reboot.
    Reset,
    /// Ravelin stopped the machine because the policy says so.
    Stopped,
    /// Whoever watched the console has seen enough.
    Enough,
    /// A signal ended us.
    Interrupted,
    /// It took too long.
    TimedOut,
    /// The machine could not start or go on; the text says why.
    Failed(String),
}

/// A run that is over.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub ended: Ended,
    /// How often the guest reset the machine.
    pub resets: u32,
    /// From start to end.
    pub wall: Duration,
    /// Bytes on the event channel that were no record.
    pub garbage: u64,
}

/// How long a signal may go unnoticed.
const TICK: Duration = Duration::from_millis(100);
impl Machine {
    /// Checks the inputs and gives the manifests that [`Machine::run`] takes.
    ///
    /// # Errors
    /// An input is missing or is not what it should be, or this host lacks something.
    pub fn prepare(&self) -> anyhow::Result<Manifests> {
        self.program()?;
        let kernel = check::read("kernel", &self.kernel)?;
        check::bzimage(&self.kernel, &kernel)?;
        check::read("initrd", &self.initrd)?;
        if self.accel == Accel::Kvm {
            check::kvm(matches!(self.protection, Protection::Ravelin { .. }))?;
        }
        match &self.protection {
            Protection::Bare => Ok(Manifests::default()),
            Protection::Ravelin { manifest: given, policy, kexec, tasks, restore, .. } => {
                tasks.load()?;
                restore.as_deref().map(state::read).transpose()?;
                let first = manifest(&self.kernel, &kernel, given.as_deref())?;
                Ok(Manifests { first, kexec: named_manifests(policy, kexec)? })
            }
        }
    }

    /// Runs the machine to its end.
    ///
    /// # Errors
    /// The emulator is not installed, or this host refuses what is needed to watch it. Whatever
    /// happens later is part of the outcome.
    pub fn run<'a>(
        &self,
        manifests: &Manifests,
        console: Console<'a>,
        on_event: &'a mut dyn FnMut(&Record),
    ) -> anyhow::Result<Outcome> {
        let interrupted = interrupted()?;
        let program = self.program()?;
        let scratch = Scratch::new()?;
        let started = Instant::now();
        let (sender, messages) = channel();
        let mut run = match self.emulator {
            Emulator::Qemu => {
                let mut command = qemu::command(&program, self, manifests, &scratch)?;
                self.start_qemu(&mut command, &scratch, console, on_event, sender)?
            }
            Emulator::Bochs { .. } => {
                let mut command = bochs::command(&program, self, manifests, &scratch)?;
                self.start_bochs(&mut command, console, on_event, sender)?
            }
        };
        while run.inputs > 0 {
            match messages.recv_timeout(TICK) {
                Ok(message) => run.take(message),
                Err(_) if interrupted.load(Ordering::Relaxed) => run.end(Ended::Interrupted),
                Err(_) => {}
            }
            if self.timeout.is_some_and(|timeout| started.elapsed() > timeout) {
                run.end(Ended::TimedOut);
            }
            if run.told_to_go.is_some_and(|at| at.elapsed() > PATIENCE) {
                run.child.kill()?;
            }
        }
        run.child.wait()?;
        Ok(run.outcome(started.elapsed()))
    }

    /// Finds the emulator and whatever else it takes.
    fn program(&self) -> anyhow::Result<PathBuf> {
        match &self.emulator {
            Emulator::Qemu => check::program("qemu-system-x86_64", "qemu-system-x86"),
            Emulator::Bochs { program } => bochs::check(self).map(|()| program.clone()),
        }
    }

    /// The boot modules of the hypervisor, if there is one, by their roles, as files of `scratch`.
    pub(crate) fn modules(
        &self,
        manifests: &Manifests,
        scratch: &Scratch,
    ) -> anyhow::Result<Vec<(Role, PathBuf)>> {
        let Protection::Ravelin { policy, tasks, restore, .. } = &self.protection else {
            return Ok(Vec::new());
        };
        // The hypervisor has no use for symbols, and loading them takes time. A file that is no
        // manifest goes as it is: refusing it is the hypervisor's part.
        let resident = |manifest: &[u8]| {
            linux_image::without_symbols(manifest).unwrap_or_else(|_| manifest.to_vec())
        };
        let mut modules = vec![
            (Role::Kernel, scratch.link(&self.kernel, "kernel")?),
            (Role::Initrd, scratch.link(&self.initrd, "initrd")?),
            (Role::Manifest, scratch.write(&resident(&manifests.first), "manifest")?),
            (Role::Policy, scratch.write(policy.to_record().as_bytes(), "policy")?),
        ];
        for (number, (role, image)) in tasks.load()?.into_iter().enumerate() {
            modules.push((role, scratch.write(&image, &format!("task-{number}"))?));
        }
        for (number, manifest) in manifests.kexec.iter().enumerate() {
            let file = scratch.write(&resident(manifest), &format!("kexec-{number}"))?;
            modules.push((Role::Kexec, file));
        }
        if let Some(path) = restore {
            // The last, so that it moves none of the others.
            modules.push((Role::State, scratch.link(path, "state")?));
        }
        Ok(modules)
    }

    fn start_qemu<'a>(
        &self,
        command: &mut Command,
        scratch: &Scratch,
        console: Console<'a>,
        on_event: &'a mut dyn FnMut(&Record),
        sender: Sender<Message>,
    ) -> anyhow::Result<Run<'a>> {
        let control = UnixListener::bind(scratch.path("qmp"))?;
        let events = UnixListener::bind(scratch.path("events"))?;
        if let Console::Capture(_) = console {
            command.stdin(Stdio::null()).stdout(Stdio::piped());
        }
        let child = spawn(command.stderr(Stdio::piped()))?;
        let mut run = Run::new(child, console, on_event, sender);
        if let Some(stdout) = run.child.stdout.take() {
            run.listen(Input::Other, lines(stdout).map(Message::Line));
        }
        if let Some(stderr) = run.child.stderr.take() {
            let notices = lines(stderr).filter_map(|line| qemu::complaint(&line));
            run.listen(Input::Other, notices.map(Message::Notice));
        }
        let protected = matches!(self.protection, Protection::Ravelin { .. });
        if let Err(error) = run.connect(&control, protected.then_some(&events)) {
            run.end(Ended::Failed(format!("{error:#}")));
        }
        Ok(run)
    }

    /// Bochs has its input for the guest's serial port, its output for the event channel, and its
    /// error output for its log.
    fn start_bochs<'a>(
        &self,
        command: &mut Command,
        console: Console<'a>,
        on_event: &'a mut dyn FnMut(&Record),
        sender: Sender<Message>,
    ) -> anyhow::Result<Run<'a>> {
        let (serial, serial_end) = std::io::pipe()?;
        command.stdin(serial_end).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A signal from the terminal is for us alone, and we end Bochs.
        let child = spawn(command.process_group(0))?;
        let mut run = Run::new(child, console, on_event, sender);
        match run.console {
            Console::Inherit => run.listen(Input::Other, pieces(serial).map(Message::Output)),
            Console::Capture(_) => run.listen(Input::Other, lines(serial).map(Message::Line)),
        }
        if let Some(stdout) = run.child.stdout.take() {
            run.listen(Input::Other, pieces(bochs::AfterBanner::of(stdout)).map(Message::Events));
        }
        if let Some(stderr) = run.child.stderr.take() {
            let no_reboot = self.no_reboot;
            let notices = lines(stderr).filter_map(move |line| bochs::notice(&line, no_reboot));
            run.listen(Input::Control, notices.map(Message::Notice));
        }
        Ok(run)
    }
}

fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))
}

/// The manifest in the file `given`, or else the one of the kernel `bytes` that were read from
/// `kernel`.
///
/// # Errors
/// The file cannot be read, or no manifest can be made.
pub fn manifest(kernel: &Path, bytes: &[u8], given: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    match given {
        Some(path) => {
            let file = check::read("manifest", path)?;
            let unpacked = linux_image::unpack(&file)
                .with_context(|| format!("the manifest {} cannot be used", path.display()))?;
            // What is not packed goes as it is: judging it is the hypervisor's part.
            Ok(unpacked.unwrap_or(file))
        }
        None => cache::manifest(bytes)
            .with_context(|| format!("no manifest can be made of {}", kernel.display())),
    }
}

/// The manifests of the kernels that a policy names for kexec.
///
/// # Errors
/// The policy names another number of them; a file cannot be read, or is no kernel that a manifest can
/// be made of.
pub fn named_manifests(policy: &Policy, kernels: &[PathBuf]) -> anyhow::Result<Vec<Vec<u8>>> {
    let named = usize::from(policy.kexec);
    ensure!(named == kernels.len(), "the policy names {named} kernels for kexec, not just these");
    let one = |path: &PathBuf| {
        let kernel = check::read("kernel", path)?;
        check::bzimage(path, &kernel)?;
        manifest(path, &kernel, None)
    };
    kernels.iter().map(one).collect()
}

/// The kernel's command line with a serial console, unless it names a console.
pub fn with_console(append: &str) -> String {
    let console = if append.contains("console=") { "" } else { "console=ttyS0 " };
    format!("{console}{append}")
}

/// Set by the first signal that asks us to go, and for ever; the second one ends us at once.
///
/// # Errors
/// The handlers cannot be installed.
pub fn interrupted() -> anyhow::Result<&'static AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if FLAG.get().is_none() {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register_conditional_default(signal, Arc::clone(&flag))?;
            flag::register(signal, Arc::clone(&flag))?;
        }
        let _ = FLAG.set(flag);
    }
    FLAG.get().map(Arc::as_ref).context("no signal handler")
}
