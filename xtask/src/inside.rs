//! End-to-end tests of the `ravelin` command inside a guest: what it prints there is what the
//! hypervisor said on the event channel, and nobody can change or misuse what it reads.

use crate::boot::Report;
use crate::build::On;
use crate::e2e::{Case, Place, case, protected, quietly};
use crate::guest_image::command;
use crate::packages::Flavour::{self, Cloud, Generic};
use crate::shell::guest_folder;
use abi::event::{Verdict, Violation, ViolationKind};
use abi::policy::Policy;
use anyhow::{Context, ensure};
use jiff::Timestamp;
use prometheus_parse::{Scrape, Value as Sample};
use ravelin::policy;
use ravelin::report::{self, Symbols};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// Signal that ends a process after #GP.
const SIGSEGV: i64 = 11;

/// The kernel's list of symbols is printed three times, which takes Bochs a while.
const BOCHS_PATIENCE: Duration = Duration::from_secs(400);

/// All tests of this file.
pub fn cases() -> Vec<Case> {
    let of = |name, flavour| case(name, move |name, place| inside(name, place, flavour));
    vec![of("inside-cloud", Cloud), Case { on: &[On::Qemu], ..of("inside-generic", Generic) }]
}

fn inside(name: &str, place: &Place<'_>, flavour: Flavour) -> anyhow::Result<()> {
    let policy = Policy { announce: true, ..Policy::default() };
    let mut machine = protected(place, flavour, "inside", policy)?;
    match place.on {
        On::Qemu => machine.cpus = 2,
        On::Bochs => {
            // As for the stress tests.
            machine.append += " clocksource=hpet";
            machine.timeout = Some(BOCHS_PATIENCE);
        }
    }
    let mut archive = std::fs::read(&machine.initrd)?;
    archive.extend(command(&place.built.ravelin)?);
    machine.initrd = guest_folder("initramfs")?.join(format!("{name}.cpio"));
    std::fs::write(&machine.initrd, archive)?;
    let report = quietly(name, &machine)?;
    report.finished()?;
    let manifests = machine.prepare()?;
    let mode = if place.on == On::Qemu { "views" } else { "mbec" };
    announced(&report)?;
    let [written, executed, ..] = violations(&report)?;
    nobody_changes_it(&report, &written, &executed)?;
    same_events(&report, &Symbols::of(&manifests.first))?;
    journal(&report)?;
    status(&report, &policy, mode)?;
    metrics(&report)?;
    only_root(&report)
}

/// The only word of this name.
fn only<T: serde::de::DeserializeOwned>(report: &Report, name: &str) -> anyhow::Result<T> {
    report.all(name)?.pop().with_context(|| format!("the guest said no `{name}`"))
}

/// CPUID and the hypercall name the same place.
fn announced(report: &Report) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Place {
        start: u64,
        bytes: u64,
        cpuid: [u64; 3],
    }
    let place: Place = only(report, "place")?;
    let expected = [published::VERSION, place.start >> addr::PAGE_SHIFT, place.bytes];
    ensure!(place.cpuid == expected, "CPUID says {:x?}, not {expected:x?}", place.cpuid);
    ensure!(place.bytes == published::BYTES as u64, "{} bytes are published", place.bytes);
    Ok(())
}

/// What the guest provoked: a write to the region, its execution, and two writes to text.
fn violations(report: &Report) -> anyhow::Result<[Violation; 4]> {
    let violations: Vec<Violation> = report.violations().into_iter().map(|(_, v)| v).collect();
    let found = violations.len();
    violations.try_into().ok().with_context(|| format!("{found} violations, not 4"))
}

/// A program of root's can neither write nor execute it. (The kernel is tried by a probe.)
fn nobody_changes_it(
    report: &Report,
    written: &Violation,
    executed: &Violation,
) -> anyhow::Result<()> {
    let attempts: Vec<Value> = report.all("attempt")?;
    let expected = [json!({"write": SIGSEGV, "execute": SIGSEGV}), json!({"text-pte": "refused"})];
    ensure!(attempts == expected, "the attempts went otherwise: {attempts:?}");
    for violation in [written, executed] {
        let right = violation.kind == ViolationKind::OwnMemory as u8
            && violation.verdict == Verdict::Deny as u8
            && violation.cpl == 3;
        ensure!(right, "another violation than of the published region: {violation:x?}");
    }
    Ok(())
}

/// `ravelin events --json` prints what came on the event channel, all of it and nothing else.
fn same_events(report: &Report, symbols: &Symbols<'_>) -> anyhow::Result<()> {
    let of_channel: Vec<Value> = report
        .records
        .iter()
        .map(|record| report::json(record, symbols, Timestamp::UNIX_EPOCH))
        .map(|event| comparable(event).map(|(_, event)| event))
        .collect::<anyhow::Result<_>>()?;
    let printed: Vec<Value> = report.all("event")?;
    let at_least: Value = only(report, "events")?;
    let count = printed.len() as u64;
    ensure!(Some(count) >= at_least["at_least"].as_u64(), "only {count} events were printed");
    let mut latest = Timestamp::MIN;
    for (event, expected) in printed.into_iter().zip(&of_channel) {
        let (time, event) = comparable(event)?;
        ensure!(event == *expected, "printed: {event}; on the channel: {expected}");
        // CPUs' counters differ a little.
        let order = time.as_second() >= latest.as_second().saturating_sub(1);
        ensure!(order, "event {} is of {time}, one before it of {latest}", event["sequence"]);
        latest = time;
    }
    let followed: Value = only(report, "followed")?;
    let (_, followed) = comparable(followed)?;
    let position = of_channel.iter().position(|event| *event == followed);
    ensure!(
        position.is_some_and(|position| position as u64 >= count)
            && followed["kind"] == "write-text",
        "`--follow` printed {followed}, which is no newer event on the channel"
    );
    Ok(())
}

/// An event without what only one side can know: when it was, and the names of modules' symbols.
fn comparable(mut event: Value) -> anyhow::Result<(Timestamp, Value)> {
    let object = event.as_object_mut().context("an event is a JSON object")?;
    let time = object.remove("time");
    for name in ["symbol", "target"] {
        if object.get(name).and_then(Value::as_str).is_some_and(|name| name.ends_with(']')) {
            object.remove(name);
        }
    }
    let time = time.as_ref().and_then(Value::as_str).context("an event has a time")?;
    Ok((time.parse()?, event))
}

fn journal(report: &Report) -> anyhow::Result<()> {
    let journal: Value = only(report, "journal")?;
    let text = journal["text"].as_str().unwrap_or_default();
    let right = |line: &str| {
        let priority = if line.contains(" deny: ") { "<3>" } else { "<" };
        line.starts_with(priority) && line.get(2..10) == Some(">ravelin")
    };
    let denied = text.lines().filter(|line| line.starts_with("<3>")).count();
    ensure!(text.lines().all(right) && denied == 3, "no lines for the journal: {text}");
    Ok(())
}

fn status(report: &Report, policy: &Policy, mode: &str) -> anyhow::Result<()> {
    let status: Value = only(report, "status")?;
    let policy: Value = toml_value(policy)?;
    for (key, expected) in [
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("locked", json!("whole")),
        ("supervisor_exec", json!(mode)),
        ("violations", json!(4)),
        ("policy", policy),
    ] {
        ensure!(status[key] == expected, "status: {key} is {}, not {expected}", status[key]);
    }
    let audited = status["audit"].as_str().is_some_and(|audit| audit.starts_with("passed"));
    ensure!(audited, "status: the audit is {}", status["audit"]);
    let kinds = &status["violations_by_kind"];
    let counted = kinds["own-memory"] == 2 && kinds["write-text"] == 2 && kinds["msr"] == 0;
    ensure!(counted, "status: violations by kind are {kinds}");
    ensure!(status["exits_by_kind"]["nested-fault"].as_u64() > Some(0), "no exits: {status}");
    let table: Value = only(report, "table")?;
    let table = table["text"].as_str().unwrap_or_default();
    for row in [
        "kernel locked whole",
        "own-memory 2",
        "policy: modules unauthenticated",
        "write-text deny",
    ] {
        let words = |line: &str| line.replace(|letter: char| "│┆".contains(letter), " ");
        let has = table.lines().any(|line| words(line).split_whitespace().eq(row.split(' ')));
        ensure!(has, "the table has no row `{row}`: {table}");
    }
    Ok(())
}

/// The policy with the keys of its file.
fn toml_value(policy: &Policy) -> anyhow::Result<Value> {
    Ok(toml::from_str(&policy::to_toml(policy))?)
}

/// What is printed and what is served is Prometheus' text format, every line of it.
fn metrics(report: &Report) -> anyhow::Result<()> {
    let text = |name| -> anyhow::Result<String> {
        let word: Value = only(report, name)?;
        Ok(word["text"].as_str().unwrap_or_default().to_owned())
    };
    let served = text("served")?;
    let (head, body) = served.split_once("\r\n\r\n").context("no HTTP answer")?;
    let right =
        head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/plain; version=0.0.4");
    ensure!(right, "the answer begins with {head}");
    for text in [&text("metrics")?, body] {
        let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned())))?;
        let lines = text.lines().filter(|line| !line.starts_with('#')).count();
        ensure!(scrape.samples.len() == lines, "{} samples in {lines} lines", scrape.samples.len());
        let typed = |sample: &&prometheus_parse::Sample| matches!(sample.value, Sample::Untyped(_));
        let untyped = scrape.samples.iter().find(typed);
        ensure!(untyped.is_none(), "a sample has no type: {untyped:?}");
        for (name, kind, expected) in [
            ("ravelin_locked", None, 2.0),
            ("ravelin_violations_total", Some("own-memory"), 2.0),
            ("ravelin_violations_total", Some("patch"), 0.0),
            ("ravelin_policy_reaction", Some("write-text"), 1.0),
        ] {
            let is_it = |sample: &&prometheus_parse::Sample| {
                sample.metric == name && sample.labels.get("kind") == kind
            };
            let found = scrape.samples.iter().find(is_it).map(|sample| &sample.value);
            let right = matches!(found, Some(Sample::Counter(value) | Sample::Gauge(value)) if *value == expected);
            ensure!(right, "{name} {kind:?} is {found:?}");
        }
    }
    Ok(())
}

/// Who is not root learns no address of the kernel, and the rest all the same.
fn only_root(report: &Report) -> anyhow::Result<()> {
    let user: Value = only(report, "user")?;
    let (events, status) = (&user["events"], &user["status"]);
    let says = events["error"].as_str().is_some_and(|text| text.contains("for root"));
    ensure!(
        events["code"] == 2 && says && events["output"].is_null(),
        "events for a user: {events}"
    );
    let status_output = &status["output"];
    let right = status["code"] == 0
        && status_output["locked"] == "whole"
        && status_output["violations"] == 4
        && status_output["policy"].is_null()
        && status_output["partial"].is_string();
    ensure!(right, "status for a user: {status}");
    Ok(())
}
