//! `ravelin metrics`: the counters in Prometheus' text format (version 0.0.4), once on standard
//! output or to everybody who asks over HTTP.

use super::status::Status;
use super::{detect, http};
use crate::args::Metrics;
use abi::hypercall::Counter;
use hypercall::Ravelin;
use serde_json::Value;
use std::fmt::Write;
use std::process::ExitCode;

/// Runs the command; with an address to listen on, until a signal ends it.
///
/// # Errors
/// There is no Ravelin here, or the address cannot be listened on.
pub fn metrics(args: &Metrics) -> anyhow::Result<ExitCode> {
    let ravelin = detect()?;
    match args.listen {
        Some(address) => http::serve(address, || read(ravelin))?,
        None => anstream::print!("{}", read(ravelin)?),
    }
    Ok(ExitCode::SUCCESS)
}

fn read(ravelin: Ravelin) -> anyhow::Result<String> {
    Status::read(ravelin).map(|status| text(&status))
}

/// Exits that are part of another kind, so that the sum over all others is that of all exits.
const PARTS: [Counter; 2] = [Counter::ApicWrite, Counter::Patch];

fn text(status: &Status) -> String {
    let mut page = Page(String::new());
    let info = [
        ("version", status.version.as_deref().unwrap_or("")),
        ("supervisor_exec", status.supervisor_exec),
    ];
    page.family("ravelin_info", "gauge", "Ravelin under this kernel; always 1");
    page.sample("ravelin_info", &info, 1);
    page.family(
        "ravelin_locked",
        "gauge",
        "Whether the kernel is locked: 0 no, 1 its text, 2 its read-only data as well",
    );
    page.sample(
        "ravelin_locked",
        &[],
        match status.locked {
            "no" => 0,
            "text" => 1,
            _ => 2,
        },
    );
    page.family("ravelin_events_total", "counter", "Records on the event channel");
    page.sample("ravelin_events_total", &[], status.last_event);
    page.family("ravelin_violations_total", "counter", "Attempts against what Ravelin enforces");
    match &status.violations_by_kind {
        Some(kinds) => {
            for (kind, count) in kinds {
                page.sample("ravelin_violations_total", &[("kind", kind)], *count);
            }
        }
        None => page.sample("ravelin_violations_total", &[("kind", "any")], status.violations),
    }
    page.family("ravelin_exits_total", "counter", "Exits from the guest to the hypervisor");
    let is_part = |kind: &str| PARTS.iter().any(|part| part.name() == kind);
    for (kind, count) in status.exits_by_kind.iter().filter(|(kind, _)| !is_part(kind)) {
        page.sample("ravelin_exits_total", &[("kind", kind)], *count);
    }
    for part in PARTS {
        let name = format!("ravelin_{}_total", part.name().replace('-', "_"));
        page.family(&name, "counter", "Exits of this sort; part of those for nested faults");
        page.sample(&name, &[], status.exits_by_kind.get(part.name()).copied().unwrap_or(0));
    }
    let reactions = status.policy.as_ref().and_then(|policy| policy.get("reactions"));
    if let Some(reactions) = reactions.and_then(Value::as_object) {
        page.family(
            "ravelin_policy_reaction",
            "gauge",
            "What the policy does about a kind of violation; always 1",
        );
        for (kind, reaction) in reactions {
            let labels = [("kind", kind.as_str()), ("reaction", reaction.as_str().unwrap_or(""))];
            page.sample("ravelin_policy_reaction", &labels, 1);
        }
    }
    page.0
}

struct Page(String);

impl Page {
    // Writing to a String cannot fail.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample; all labels are our own words, so that none needs to be escaped.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<String> =
            labels.iter().map(|(key, text)| format!("{key}=\"{text}\"")).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}
