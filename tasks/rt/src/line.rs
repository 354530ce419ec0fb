//! Lines for the event channel.

use arrayvec::ArrayString;
use core::fmt::{self, Write};

/// Longest line in bytes, as the event channel takes it.
const LONGEST: usize = 200;

/// A line that is being written; what does not fit is cut off, between two characters.
#[derive(Default)]
pub struct Line(ArrayString<LONGEST>);

impl Line {
    /// The line of this text.
    pub fn of(text: fmt::Arguments<'_>) -> Self {
        let mut line = Self::default();
        // A line takes everything.
        let _ = line.write_fmt(text);
        line
    }

    /// Puts it on the event channel.
    pub fn log(&self) {
        // It is never too long, and there is nobody else to tell.
        let _ = crate::log_line(&self.0);
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.0.try_push(character).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// `log!("...", ...)`: a line on the event channel.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => { $crate::Line::of(format_args!($($argument)*)).log() };
}
