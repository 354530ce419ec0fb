//! A machine that runs, and what is heard of it.
//!
//! Threads read the emulator's streams and pass everything on as messages to the one thread that
//! owns the [`Run`], which alone calls back.

use crate::events::{Body, Decoder, Record};
use crate::machine::{Console, Ended, Outcome};
use crate::notice::Notice;
use crate::qmp::Control;
use abi::event::Verdict;
use anyhow::ensure;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Child;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Something that was heard.
pub enum Message {
    Line(String),
    Output(Vec<u8>),
    Events(Vec<u8>),
    Notice(Notice),
    Closed(Input),
}

#[derive(PartialEq, Eq)]
/// Where it was heard; the end of the emulator's control is that of the machine.
pub enum Input {
    Control,
    Other,
}

/// How long the emulator may take to come up, and to go.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Lines that a message of failure quotes at most.
const MOST_COMPLAINTS: usize = 20;

/// A machine that runs.
pub struct Run<'a> {
    /// The emulator.
    pub child: Child,
    control: Option<Control>,
    /// What becomes of the guest's console.
    pub console: Console<'a>,
    on_event: &'a mut dyn FnMut(&Record),
    sender: Sender<Message>,
    /// Threads that may still send something.
    pub inputs: usize,
    decoder: Decoder,
    ended: Option<Ended>,
    /// When it was told to end.
    pub told_to_go: Option<Instant>,
    stopped: bool,
    fatal: Option<String>,
    /// The latest.
    complaints: VecDeque<String>,
    resets: u32,
}

impl<'a> Run<'a> {
    /// Watches `child`; nothing is heard yet.
    pub fn new(
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
    pub fn listen(
        &mut self,
        input: Input,
        messages: impl Iterator<Item = Message> + Send + 'static,
    ) {
        self.inputs += 1;
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            for message in messages.chain([Message::Closed(input)]) {
                // Nobody listens any more once the run is over.
                let _ = sender.send(message);
            }
        });
    }

    /// Connects QEMU's control and, if there are any, its events.
    pub fn connect(
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

    /// Acts on a message.
    pub fn take(&mut self, message: Message) {
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
            Body::Fatal(text) => {
                self.stopped |= text.starts_with("stopped by");
                self.fatal = Some(text.clone());
            }
            _ => {}
        }
    }

    /// Ends the machine; only the first reason counts.
    pub fn end(&mut self, ended: Ended) {
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

    /// What it came to.
    pub fn outcome(self, wall: Duration) -> Outcome {
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
pub fn lines(stream: impl Read) -> impl Iterator<Item = String> {
    BufReader::new(stream)
        .split(b'\n')
        .map_while(Result::ok)
        .map(|line| String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned())
}

/// The bytes of a stream as they come.
pub fn pieces(mut stream: impl Read) -> impl Iterator<Item = Vec<u8>> {
    std::iter::from_fn(move || {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).ok().filter(|length| *length > 0)?;
        buffer.get(..length).map(<[u8]>::to_vec)
    })
}
