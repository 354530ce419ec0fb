//! Booting a test guest and reading what it says.
//!
//! The guest reports in console lines `@@ word {json}`; everything it prints is kept in a log
//! file under `target/guest/logs`.

use crate::shell::guest_folder;
use abi::event::{LockReport, Violation};
use anyhow::Context;
use jiff::Timestamp;
use ravelin::events::{Body, Record};
use ravelin::machine::{Accel, Boot, Console, Emulator, Ended, Machine, Outcome, Protection};
use ravelin::report::{self, Kernels};
use ravelin::state::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A machine with one CPU and 1 GiB that boots a kernel to do `job`, three minutes at most.
pub fn machine(
    emulator: Emulator,
    kernel: &Path,
    initrd: &Path,
    job: &str,
    protection: Protection,
) -> Machine {
    Machine {
        kernel: kernel.to_owned(),
        initrd: initrd.to_owned(),
        append: format!("console=ttyS0,115200 panic=-1 ravelin.job={job}"),
        boot: Boot::Direct,
        cpus: 1,
        memory: 1 << 30,
        protection,
        emulator,
        accel: Accel::Tcg,
        cpu: None,
        icount: None,
        no_reboot: true,
        timeout: Some(Duration::from_secs(180)),
        extra: Vec::new(),
    }
}

/// What a guest said and what was said about it.
pub struct Report {
    /// How the run ended.
    pub outcome: Outcome,
    /// Every `@@ word {json}`, in order.
    pub words: Vec<Word>,
    /// Every record of the event channel, in order.
    pub records: Vec<Record>,
    /// Everything that was printed.
    pub log: PathBuf,
    /// It ran under Ravelin.
    protected: bool,
}

/// What the guest says of an audit of all page tables.
#[derive(Deserialize)]
struct Audit {
    ok: bool,
    said: String,
    /// A bug is planted in this hypervisor.
    planted: bool,
}

/// One report of the guest.
pub struct Word {
    /// What it is about.
    pub name: String,
    /// What it says.
    pub value: Value,
    /// When it was said, counted from the start of the machine.
    pub at: Duration,
}

/// Boots `machine`; `on_word` is called as the guest reports, and can end the run.
///
/// # Errors
/// The machine could not be started, or the log could not be written.
pub fn boot(
    name: &str,
    machine: &Machine,
    on_word: &mut dyn FnMut(&str, &Value) -> ControlFlow<()>,
) -> anyhow::Result<Report> {
    let log = guest_folder("logs")?.join(format!("{name}.log"));
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut file = BufWriter::new(file);
    let manifests = machine.prepare()?;
    let mut kernels = Kernels::of(&manifests);
    let started = Instant::now();
    let mut words = Vec::new();
    let mut records = Vec::new();
    let mut on_line = |line: &str| {
        // A log that cannot be written shows when it is flushed.
        let _ = writeln!(file, "{line}");
        let Some((name, value)) = word(line) else { return ControlFlow::Continue(()) };
        let flow = on_word(&name, &value);
        words.push(Word { name, value, at: started.elapsed() });
        flow
    };
    let mut on_event = |record: &Record| records.push(record.clone());
    let outcome = machine.run(&manifests, Console::Capture(&mut on_line), &mut on_event)?;
    for record in &records {
        writeln!(file, "{}", report::json(record, kernels.at(record), Timestamp::now()))?;
    }
    writeln!(file, "{:?} after {:.1} s", outcome.ended, outcome.wall.as_secs_f32())?;
    file.flush()?;
    let protected = !matches!(machine.protection, Protection::Bare);
    Ok(Report { outcome, words, records, log, protected })
}

impl Report {
    /// Every report of this word.
    ///
    /// # Errors
    /// One of them is not of the form that is expected.
    pub fn all<T: DeserializeOwned>(&self, word: &str) -> anyhow::Result<Vec<T>> {
        let values = self.words.iter().filter(|said| said.name == word);
        let read = |value: &Value| {
            serde_json::from_value(value.clone())
                .with_context(|| format!("the guest said `@@ {word} {value}`"))
        };
        values.map(|said| read(&said.value)).collect()
    }

    /// How often the guest said this word.
    pub fn count(&self, word: &str) -> usize {
        self.words.iter().filter(|said| said.name == word).count()
    }

    /// Every violation, with the number of its record.
    pub fn violations(&self) -> Vec<(u64, Violation)> {
        let violation = |record: &Record| match record.body {
            Body::Violation(violation) => Some((record.sequence, violation)),
            _ => None,
        };
        self.records.iter().filter_map(violation).collect()
    }

    /// Every protection state that was written whole.
    pub fn states(&self) -> Vec<Vec<u8>> {
        let mut parts = Parts::default();
        let state = |record: &Record| match &record.body {
            Body::State(part, bytes) => parts.push(*part, bytes),
            _ => None,
        };
        self.records.iter().filter_map(state).collect()
    }

    /// Every report of a lock.
    pub fn locks(&self) -> Vec<LockReport> {
        let lock = |record: &Record| match record.body {
            Body::Locked(lock) => Some(lock),
            _ => None,
        };
        self.records.iter().filter_map(lock).collect()
    }

    /// Whether the guest did its job to the end and switched itself off, and the page tables were as
    /// they must be.
    ///
    /// # Errors
    /// It did not; the message says how it ended instead.
    pub fn finished(&self) -> anyhow::Result<()> {
        self.ended()?;
        self.audited(false)
    }

    fn ended(&self) -> anyhow::Result<()> {
        let said = self.count("done") > 0;
        anyhow::ensure!(
            said && self.outcome.ended == Ended::PowerOff,
            "the guest {}, and the run ended with {:?}; see {}",
            if said { "finished" } else { "did not finish" },
            self.outcome.ended,
            self.log.display()
        );
        Ok(())
    }

    /// As [`Report::finished`], of the test build in which a bug is planted.
    ///
    /// # Errors
    /// As there.
    pub fn finished_planted(&self) -> anyhow::Result<()> {
        self.ended()?;
        self.audited(true)
    }

    /// Whether every audit that the test program asked for found nothing, and there was one; and the
    /// hypervisor is of the build that was meant.
    fn audited(&self, planted: bool) -> anyhow::Result<()> {
        if !self.protected || self.count("boot") == 0 {
            return Ok(());
        }
        let audits: Vec<Audit> = self.all("audit")?;
        anyhow::ensure!(!audits.is_empty(), "no audit was made; see {}", self.log.display());
        let as_meant = audits.iter().all(|audit| audit.planted == planted);
        anyhow::ensure!(as_meant, "a bug is planted in the hypervisor, or is not where it must be");
        match audits.iter().find(|audit| !audit.ok) {
            Some(audit) => anyhow::bail!("the audit: {}; see {}", audit.said, self.log.display()),
            None => Ok(()),
        }
    }
}

/// The report in a console line; the kernel may have printed something before or after it.
fn word(line: &str) -> Option<(String, Value)> {
    let (_, text) = line.split_once("@@ ")?;
    let (word, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let mut values = serde_json::Deserializer::from_str(rest).into_iter();
    let value = values.next().and_then(Result::ok).unwrap_or(Value::Null);
    Some((word.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words_are_found_in_lines() {
        let found = |line| word(line);
        assert_eq!(found("@@ done"), Some(("done".into(), Value::Null)));
        assert_eq!(
            found("[1.0] x @@ probe {\"name\":\"a b\"} [2.0] y"),
            Some(("probe".into(), json!({ "name": "a b" })))
        );
        assert_eq!(found("@@ probe {\"name\":"), Some(("probe".into(), Value::Null)));
        assert_eq!(found("nothing"), None);
    }
}
