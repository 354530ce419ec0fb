//! Lines for programs on the console: `@@`, a word, one JSON object.
//!
//! A line is one write(2) that begins with a newline, after everything before it was sent, so
//! that a message of the kernel can stand between two lines and rarely inside one.

use std::fs::File;

use anyhow::{Context as _, Result};
use nix::sys::termios::tcdrain;
use serde_json::Value;
use std::io::Write as _;

/// The system console.
pub struct Console(File);

impl Console {
    /// Opens `/dev/console` for writing.
    pub fn open() -> Result<Self> {
        let file = File::options().write(true).open("/dev/console");
        Ok(Self(file.context("opening /dev/console")?))
    }

    /// Writes one line and waits until it is on the wire.
    pub fn report(&self, word: &str, object: &Value) -> Result<()> {
        let line = format!("\n@@ {word} {object}\n");
        tcdrain(&self.0)?;
        (&self.0).write_all(line.as_bytes())?;
        tcdrain(&self.0)?;
        Ok(())
    }
}
