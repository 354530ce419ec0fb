//! `ravelin events`: the events as they are published, oldest first.

use super::clock::Clock;
use super::{detect, open};
use crate::args::{Events, Form};
use abi::event::Verdict;
use anyhow::Context;
use ravelin::events::{Body, Record};
use ravelin::machine::interrupted;
use ravelin::report::{self, Symbols};
use std::fs::File;
use std::io::{BufReader, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often the region is looked at for new events.
const PERIOD: Duration = Duration::from_millis(200);
const KALLSYMS: &str = "/proc/kallsyms";

/// Runs the command.
///
/// # Errors
/// There is no Ravelin here, or its region cannot be read.
pub fn events(args: &Events) -> anyhow::Result<ExitCode> {
    let stop = interrupted()?;
    let mut reader = open(detect()?)?;
    let clock = Clock::start();
    let mut symbols = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(found) = reader.next_record().context("the events cannot be read any more")?
        else {
            if !args.follow {
                break;
            }
            std::thread::sleep(PERIOD);
            continue;
        };
        let record = Record::new(&found.header, found.payload(), found.missing);
        // Read when the first is needed: it takes the kernel a while to print all of them.
        let named = matches!(record.body, Body::Violation(_));
        let symbols =
            if named { symbols.get_or_insert_with(running_kernel) } else { &Symbols::default() };
        let line = line(args.form(), &record, symbols, &clock);
        match writeln!(anstream::stdout(), "{line}") {
            // Whoever reads has had enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
            other => other?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The names that the kernel shows; none if it shows none.
fn running_kernel() -> Symbols<'static> {
    File::open(KALLSYMS).map(BufReader::new).map(Symbols::of_running_kernel).unwrap_or_default()
}

fn line(form: Form, record: &Record, symbols: &Symbols<'_>, clock: &Clock) -> String {
    match form {
        Form::Lines => {
            let time = clock.at(record.tsc).strftime("%FT%TZ");
            format!("{time} {}", report::line(record, symbols))
        }
        Form::Json => report::json(record, symbols, clock.at(record.tsc)).to_string(),
        // The journal keeps its own time.
        Form::Journal => {
            format!(
                "<{}>{}",
                priority(&record.body),
                anstream::adapter::strip_str(&report::line(record, symbols))
            )
        }
    }
}

/// The priority for the journal (sd-daemon(3)).
fn priority(body: &Body) -> u8 {
    const CRITICAL: u8 = 2;
    const ERROR: u8 = 3;
    const WARNING: u8 = 4;
    const NOTICE: u8 = 5;
    const INFORMATION: u8 = 6;
    match body {
        Body::Fatal(_) => CRITICAL,
        Body::Violation(violation) => match Verdict::from_number(violation.verdict) {
            Some(Verdict::Stop) => CRITICAL,
            Some(Verdict::Log) => WARNING,
            Some(Verdict::Deny) | None => ERROR,
        },
        Body::Alias(_) => WARNING,
        Body::Locked(_) | Body::Promoted(_) | Body::Succession(_) | Body::Unknown { .. } => NOTICE,
        Body::Log(_) | Body::State(..) => INFORMATION,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(body: Body) -> String {
        let record = Record { sequence: 9, tsc: 0, missing: 2, body };
        line(Form::Journal, &record, &Symbols::default(), &Clock::start())
    }

    #[test]
    fn the_journal_gets_one_plain_line_with_a_priority() {
        let line = journal(Body::Fatal("two\nlines \x1b[31m".into()));
        assert_eq!(line, "<2>ravelin[9] FATAL: two lines  [31m (2 records lost before it)");
        assert!(journal(Body::Log("x".into())).starts_with("<6>ravelin[9] x"));
        assert!(journal(Body::Unknown { kind: 7, length: 1 }).starts_with("<5>"));
    }
}
