//! QEMU's control socket: starting the machine, learning why it stopped, ending it.

use crate::notice::Notice;
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

/// The sending half.
pub struct Control(UnixStream);

impl Control {
    /// Shakes hands and lets the machine run. The receiving half gives one notice per line.
    pub fn start(socket: UnixStream) -> anyhow::Result<(Self, Notices)> {
        let mut lines = BufReader::new(socket.try_clone()?);
        let mut control = Self(socket);
        read(&mut lines)?.get("QMP").context("no greeting on QEMU's control socket")?;
        for command in ["qmp_capabilities", "cont"] {
            control.send(command)?;
            loop {
                let answer = read(&mut lines)?;
                if answer.get("return").is_some() {
                    break;
                }
                if let Some(error) = answer.get("error") {
                    bail!("QEMU refused `{command}`: {error}");
                }
            }
        }
        Ok((control, Notices(lines)))
    }

    /// Ends the machine. That it is already gone is no error.
    pub fn quit(&mut self) {
        let _ = self.send("quit");
    }

    fn send(&mut self, command: &str) -> anyhow::Result<()> {
        writeln!(self.0, "{}", json!({ "execute": command }))?;
        Ok(())
    }
}

/// The receiving half.
pub struct Notices(BufReader<UnixStream>);

impl Iterator for Notices {
    type Item = Notice;

    fn next(&mut self) -> Option<Notice> {
        loop {
            let message = read(&mut self.0).ok()?;
            if let Some(notice) = notice(&message) {
                return Some(notice);
            }
        }
    }
}

fn read(lines: &mut BufReader<UnixStream>) -> anyhow::Result<Value> {
    let mut line = String::new();
    if lines.read_line(&mut line)? == 0 {
        bail!("QEMU closed its control socket");
    }
    Ok(serde_json::from_str(&line)?)
}

fn notice(message: &Value) -> Option<Notice> {
    let reason = message.pointer("/data/reason")?.as_str()?;
    match (message.get("event")?.as_str()?, reason) {
        ("SHUTDOWN", "guest-shutdown") => Some(Notice::PowerOff),
        ("SHUTDOWN", "guest-reset") => Some(Notice::Reset { stopped: true }),
        ("SHUTDOWN", _) => Some(Notice::Ended),
        ("RESET", "guest-reset") => Some(Notice::Reset { stopped: false }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_told_apart() {
        let of = |event: &str, reason: &str| {
            notice(&json!({ "event": event, "data": { "guest": true, "reason": reason } }))
        };
        assert_eq!(of("SHUTDOWN", "guest-shutdown"), Some(Notice::PowerOff));
        assert_eq!(of("SHUTDOWN", "guest-reset"), Some(Notice::Reset { stopped: true }));
        assert_eq!(of("SHUTDOWN", "host-signal"), Some(Notice::Ended));
        assert_eq!(of("RESET", "guest-reset"), Some(Notice::Reset { stopped: false }));
        assert_eq!(of("STOP", "x"), None);
        assert_eq!(notice(&json!({ "return": {} })), None);
    }
}
