//! The result on a terminal.

use super::{Audited, text};
use comfy_table::Table;
use dump::survey::Alias;
use integrity::Rights;
use ravelin::table::table;
use std::fmt::Write;

/// Findings that are shown; JSON has all.
const MOST_SHOWN: usize = 100;

/// All tables, and the verdict.
pub fn tables(audited: &Audited<'_>) -> String {
    let mut out = String::new();
    let mut show = |table: &Table| {
        let _ = writeln!(out, "{table}");
    };
    let mut facts = table([""; 0]);
    for (name, value) in text::facts(audited) {
        facts.add_row([name.to_owned(), value]);
    }
    show(&facts);
    show(&rights(audited));
    let survey = &audited.survey;
    if !survey.findings.is_empty() {
        show(&findings(audited));
    }
    if !survey.open.is_empty() {
        show(&aliases(audited, "open to processes", &survey.open));
    }
    if !survey.outside.is_empty() {
        show(&aliases(audited, "writable and executable, not in the dump", &survey.outside));
    }
    for gap in text::gaps(audited) {
        let _ = writeln!(out, "note: {gap}");
    }
    let _ = writeln!(out, "{}", text::verdict(audited));
    out
}

/// Pages by what the kernel and what processes can do with them.
fn rights(audited: &Audited<'_>) -> Table {
    let mut table =
        table(["the kernel can", "pages", "of these, processes can read", "processes can write"]);
    for (bits, counts) in (0..).zip(&audited.survey.frames) {
        let all: u64 = counts.iter().sum();
        if all == 0 {
            continue;
        }
        let [_, read, write] = counts;
        let rights = text::rights(Rights::from_bits_truncate(bits));
        table.add_row([rights, all.to_string(), (read + write).to_string(), write.to_string()]);
    }
    table
}

fn findings(audited: &Audited<'_>) -> Table {
    let mut table = table(["physical", "pages", "what is wrong", "mappings"]);
    for finding in audited.survey.findings.iter().take(MOST_SHOWN) {
        let mappings = finding.aliases.iter().map(|alias| line(audited, alias));
        table.add_row([
            format!("{:#x}", finding.frames.start.start().raw()),
            finding.frames.count().to_string(),
            text::problem(finding).to_owned(),
            mappings.collect::<Vec<_>>().join("\n"),
        ]);
    }
    let more = audited.survey.findings.len().saturating_sub(MOST_SHOWN);
    if more > 0 {
        table.add_row([format!("and {more} more: see --json")]);
    }
    table
}

fn aliases(audited: &Audited<'_>, title: &str, aliases: &[Alias]) -> Table {
    let mut table = table(["physical", "pages", title]);
    for alias in aliases.iter().take(MOST_SHOWN) {
        let physical = format!("{:#x}", alias.gpa.raw());
        table.add_row([physical, alias.pages.to_string(), line(audited, alias)]);
    }
    table
}

fn line(audited: &Audited<'_>, alias: &Alias) -> String {
    let rights = text::rights(alias.rights);
    format!("{rights} {:#x} {}", alias.gva.raw(), text::place(audited, alias))
}
