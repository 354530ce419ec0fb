//! One emulated machine, from its first instruction to its end.
//!
//! The emulator runs as a child; threads read its console, its messages and the event channel,
//! and pass everything to the thread that called [`Machine::run`], which alone calls back. When
//! `run` returns, the child is gone and so are the threads' inputs. How an emulator is told what to
//! run is in a module of its own, such as `qemu`.

use crate::events::{Body, Decoder, Record};
use crate::notice::Notice;
use crate::qmp::Control;
use crate::scratch::Scratch;
use crate::{bochs, cache, check, qemu};
use abi::event::Verdict;
use abi::policy::Policy;
use anyhow::{Context, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::{UnixListener, UnixStream};
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
    /// One instruction per nanosecond of guest time, so that counts repeat exactly. One CPU only.
    /// Bochs always counts: its time-stamp counter advances by one with every instruction.
    pub icount: bool,
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
        /// A manifest to use in place of the kernel's own.
        manifest: Option<PathBuf>,
    },
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

enum Message {
    Line(String),
    Output(Vec<u8>),
    Events(Vec<u8>),
    Notice(Notice),
    Closed(Input),
}

#[derive(PartialEq, Eq)]
enum Input {
    Control,
    Other,
}

/// How long the emulator may take to come up, and to go.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a signal may go unnoticed.
const TICK: Duration = Duration::from_millis(100);
/// Lines that a message of failure quotes at most.
const MOST_COMPLAINTS: usize = 20;

impl Machine {
    /// Checks the inputs and gives the manifest that [`Machine::run`] takes (empty when bare).
    ///
    /// # Errors
    /// An input is missing or is not what it should be, or this host lacks something.
    pub fn prepare(&self) -> anyhow::Result<Vec<u8>> {
        self.program()?;
        let kernel = check::read("kernel", &self.kernel)?;
        check::bzimage(&self.kernel, &kernel)?;
        check::read("initrd", &self.initrd)?;
        if self.accel == Accel::Kvm {
            check::kvm(matches!(self.protection, Protection::Ravelin { .. }))?;
        }
        match &self.protection {
            Protection::Bare => Ok(Vec::new()),
            Protection::Ravelin { manifest: given, .. } => {
                manifest(&self.kernel, &kernel, given.as_deref())
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
        manifest: &[u8],
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
                let mut command = qemu::command(&program, self, manifest, &scratch)?;
                self.start_qemu(&mut command, &scratch, console, on_event, sender)?
            }
            Emulator::Bochs { .. } => {
                let mut command = bochs::command(&program, self, manifest, &scratch)?;
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

    /// The boot modules of the hypervisor by their roles, as files of `scratch`.
    pub(crate) fn modules(
        &self,
        manifest: &[u8],
        policy: &Policy,
        scratch: &Scratch,
    ) -> anyhow::Result<[(&'static str, PathBuf); 4]> {
        // The hypervisor has no use for symbols, and loading them takes time. A file that is no
        // manifest goes as it is: refusing it is the hypervisor's part.
        let resident = linux_image::without_symbols(manifest);
        let manifest = resident.as_deref().unwrap_or(manifest);
        Ok([
            ("kernel", scratch.link(&self.kernel, "kernel")?),
            ("initrd", scratch.link(&self.initrd, "initrd")?),
            ("manifest", scratch.write(manifest, "manifest")?),
            ("policy", scratch.write(policy.to_record().as_bytes(), "policy")?),
        ])
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

/// A machine that runs.
struct Run<'a> {
    child: Child,
    control: Option<Control>,
    console: Console<'a>,
    on_event: &'a mut dyn FnMut(&Record),
    sender: Sender<Message>,
    /// Threads that may still send something.
    inputs: usize,
    decoder: Decoder,
    ended: Option<Ended>,
    told_to_go: Option<Instant>,
    stopped: bool,
    fatal: Option<String>,
    /// The latest.
    complaints: VecDeque<String>,
    resets: u32,
}

impl<'a> Run<'a> {
    fn new(
        child: Child,
        console: Console<'a>,
        on_event: &'a mut dyn FnMut(&Record),
        sender: Sender<Message>,
    ) -> Self {
        Self {
            child,
            control: None,
            console,
            on_event,
            sender,
            inputs: 0,
            decoder: Decoder::default(),
            ended: None,
            told_to_go: None,
            stopped: false,
            fatal: None,
            complaints: VecDeque::new(),
            resets: 0,
        }
    }

    /// Passes on what `messages` gives, from a thread.
    fn listen(&mut self, input: Input, messages: impl Iterator<Item = Message> + Send + 'static) {
        self.inputs += 1;
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            for message in messages.chain([Message::Closed(input)]) {
                // Nobody listens any more once the run is over.
                let _ = sender.send(message);
            }
        });
    }

    fn connect(
        &mut self,
        control: &UnixListener,
        events: Option<&UnixListener>,
    ) -> anyhow::Result<()> {
        if let Some(events) = events {
            let socket = self.accept(events)?;
            self.listen(Input::Other, pieces(socket).map(Message::Events));
        }
        let socket = self.accept(control)?;
        let (control, notices) = Control::start(socket)?;
        self.control = Some(control);
        self.listen(Input::Control, notices.map(Message::Notice));
        Ok(())
    }

    /// Waits until the emulator connects, or is gone.
    fn accept(&mut self, listener: &UnixListener) -> anyhow::Result<UnixStream> {
        listener.set_nonblocking(true)?;
        let started = Instant::now();
        loop {
            match listener.accept() {
                Ok((socket, _)) => {
                    socket.set_nonblocking(false)?;
                    return Ok(socket);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            ensure!(self.child.try_wait()?.is_none(), "QEMU refused to start");
            ensure!(started.elapsed() < PATIENCE, "QEMU does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Line(line) => {
                if let Console::Capture(on_line) = &mut self.console
                    && on_line(&line).is_break()
                {
                    self.end(Ended::Enough);
                }
            }
            Message::Output(bytes) => {
                // Whoever does not want to read our output any more does not stop the machine.
                let mut stdout = std::io::stdout();
                let _ = stdout.write_all(&bytes).and_then(|()| stdout.flush());
            }
            Message::Events(bytes) => {
                for record in self.decoder.push(&bytes) {
                    self.note(&record);
                    (self.on_event)(&record);
                }
            }
            Message::Notice(Notice::PowerOff) => self.end(Ended::PowerOff),
            Message::Notice(Notice::Ended) => self.end(Ended::Interrupted),
            Message::Notice(Notice::Failed(reason)) => self.end(Ended::Failed(reason)),
            Message::Notice(Notice::Reset { stopped }) => {
                self.resets += 1;
                if stopped {
                    self.end(Ended::Reset);
                }
            }
            Message::Notice(Notice::Complaint(line)) => {
                if self.complaints.len() == MOST_COMPLAINTS {
                    self.complaints.pop_front();
                }
                self.complaints.push_back(line);
            }
            Message::Closed(input) => {
                self.inputs -= 1;
                if input == Input::Control {
                    self.end(Ended::Failed("the emulator ended unexpectedly".into()));
                }
            }
        }
    }

    fn note(&mut self, record: &Record) {
        match &record.body {
            Body::Violation(violation) => {
                self.stopped |= violation.verdict == Verdict::Stop as u8;
            }
            Body::Fatal(text) => self.fatal = Some(text.clone()),
            _ => {}
        }
    }

    /// Ends the machine; only the first reason counts.
    fn end(&mut self, ended: Ended) {
        if self.ended.is_none() {
            self.ended = Some(ended);
            self.told_to_go = Some(Instant::now());
            match &mut self.control {
                Some(control) => control.quit(),
                // That it is already gone is no error.
                None => drop(self.child.kill()),
            }
        }
    }

    fn outcome(self, wall: Duration) -> Outcome {
        let ended = match (self.ended, self.fatal) {
            (Some(Ended::PowerOff | Ended::Reset), _) if self.stopped => Ended::Stopped,
            (Some(Ended::PowerOff | Ended::Reset), Some(text)) => Ended::Failed(text),
            (Some(Ended::Failed(text)), _) => {
                let lines: Vec<String> = std::iter::once(text).chain(self.complaints).collect();
                Ended::Failed(lines.join("\n"))
            }
            (ended, _) => ended.unwrap_or(Ended::Interrupted),
        };
        Outcome { ended, resets: self.resets, wall, garbage: self.decoder.skipped() }
    }
}

/// The lines of a stream, without their ends, until it ends or fails.
fn lines(stream: impl Read) -> impl Iterator<Item = String> {
    BufReader::new(stream)
        .split(b'\n')
        .map_while(Result::ok)
        .map(|line| String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned())
}

/// The bytes of a stream as they come.
fn pieces(mut stream: impl Read) -> impl Iterator<Item = Vec<u8>> {
    std::iter::from_fn(move || {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).ok().filter(|length| *length > 0)?;
        buffer.get(..length).map(<[u8]>::to_vec)
    })
}
