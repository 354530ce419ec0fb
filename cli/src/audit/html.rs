//! The result as a web page: one file without scripts, that loads nothing.

use super::{Audited, text};
use dump::survey::{Alias, Cell, Survey, Use};
use integrity::Rights;
use std::fmt::{self, Write};

/// Cells in a row of the map.
const COLUMNS: u64 = 128;
/// Width and height of a cell, and room for addresses, in pixels of the map.
const WIDTH: u64 = 8;
const HEIGHT: u64 = 10;
const MARGIN: u64 = 90;
/// Findings that are shown; JSON has all.
const MOST_SHOWN: usize = 1000;

const STYLE: &str = "\
:root { color-scheme: light dark; --text: #1c2024; --soft: #60656c; --line: #d5d8dc; --back: #fff;
  --unmapped: #e4e6e9; --data: #9ec1e8; --read-only: #3f7fc4; --user: #b9d9a3; --code: #7d6bb8;
  --user-code: #f0a020; --conflict: #d42a2a; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ea; --soft: #9aa0a6; --line: #3a3f45;
  --back: #16181b; --unmapped: #2b2f34; --data: #37567a; --read-only: #6ba3e0; --user: #55773f;
  --code: #a696dd; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { padding: .6rem 1rem; border-left: 6px solid; background: var(--unmapped); }
.good { border-color: #2e9e5b; } .bad { border-color: var(--conflict); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } td.number, th.number { text-align: right; }
code { font: 13px ui-monospace, monospace; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 9px ui-monospace, monospace; fill: var(--soft); }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none; }
.key svg { display: inline-block; width: 12px; height: 12px; margin-right: .4rem; }
.unmapped { fill: var(--unmapped); } .data { fill: var(--data); } .read-only { fill: var(--read-only); }
.user { fill: var(--user); } .code { fill: var(--code); } .user-code { fill: var(--user-code); }
.conflict { fill: var(--conflict); }
rect:hover { stroke: var(--text); stroke-width: 1.5; }";

/// The page.
pub fn page(audited: &Audited<'_>) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut page, audited);
    page
}

fn write(out: &mut String, audited: &Audited<'_>) -> fmt::Result {
    let survey = &audited.survey;
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width\"/>\n\
         <title>Audit of {}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>Audit of {}</h1>\n",
        Escaped(&file_name(audited)),
        Escaped(&file_name(audited)),
    )?;
    let class = if survey.is_clean() { "good" } else { "bad" };
    writeln!(
        out,
        "<p class=\"verdict {class}\">{}</p>",
        Escaped(&sentence(&text::verdict(audited)))
    )?;
    for gap in text::gaps(audited) {
        writeln!(out, "<p>Note: {}.</p>", Escaped(&gap))?;
    }
    writeln!(out, "<table>")?;
    for (name, value) in text::facts(audited) {
        writeln!(out, "<tr><th>{name}</th><td>{}</td></tr>", Escaped(&value))?;
    }
    writeln!(out, "</table>\n<h2>Physical memory</h2>")?;
    key(out, audited)?;
    map(out, survey)?;
    rights(out, audited)?;
    findings(out, audited)?;
    aliases(out, audited, "Addresses of the kernel half that are open to processes", &survey.open)?;
    aliases(out, audited, "Writable and executable, not in the dump", &survey.outside)?;
    writeln!(out, "</body>\n</html>")
}

fn file_name(audited: &Audited<'_>) -> String {
    audited.path.file_name().unwrap_or(audited.path.as_os_str()).to_string_lossy().into_owned()
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).chain(['.']).collect()
}

/// Class of a use in the style sheet.
const fn class(usage: Use) -> &'static str {
    match usage {
        Use::Unmapped => "unmapped",
        Use::Data => "data",
        Use::ReadOnly => "read-only",
        Use::User => "user",
        Use::Code => "code",
        Use::UserCode => "user-code",
        Use::Conflict => "conflict",
    }
}

/// What the colours mean, and how much there is of each.
fn key(out: &mut String, audited: &Audited<'_>) -> fmt::Result {
    writeln!(out, "<ul class=\"key\">")?;
    for usage in Use::ALL.into_iter().rev() {
        writeln!(
            out,
            "<li><svg viewBox=\"0 0 12 12\"><rect class=\"{}\" width=\"12\" height=\"12\"/></svg>{}: {}</li>",
            class(usage),
            text::usage(usage),
            text::frames(audited.survey.count(usage)),
        )?;
    }
    writeln!(out, "</ul>")
}

/// What a cell is shown as: what should not be, however little; else what there is most of.
fn shown(cell: &Cell) -> Use {
    let counted = || Use::ALL.into_iter().zip(cell.uses).filter(|(_, count)| *count > 0);
    let found = counted().filter(|(usage, _)| usage.is_finding()).max();
    let most = counted().max_by_key(|(_, count)| *count);
    found.or(most).map_or(Use::Unmapped, |(usage, _)| usage)
}

/// All cells where their addresses put them in rows, with the address of each row; rows without
/// memory are left out.
fn map(out: &mut String, survey: &Survey) -> fmt::Result {
    let bytes = survey.cell_frames << addr::PAGE_SHIFT;
    let mut rows: Vec<u64> = survey.cells.iter().map(|cell| cell.number / COLUMNS).collect();
    rows.dedup();
    writeln!(
        out,
        "<p>A cell is {}. It is shown as what should not be in it, if anything; else as what most \
         of it is.</p>\n<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"Map of physical memory\">",
        text::bytes(bytes),
        MARGIN + COLUMNS * WIDTH,
        rows.len() as u64 * HEIGHT
    )?;
    let mut cells = survey.cells.iter().peekable();
    for (number, row) in (0..).zip(rows) {
        let y = number * HEIGHT;
        let address = u128::from(row * COLUMNS) * u128::from(bytes);
        writeln!(out, "<text x=\"0\" y=\"{}\">{address:#x}</text>", y + HEIGHT - 2)?;
        while let Some(cell) = cells.next_if(|cell| cell.number / COLUMNS == row) {
            writeln!(
                out,
                "<rect class=\"{}\" x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{}\"><title>{}</title></rect>",
                class(shown(cell)),
                MARGIN + cell.number % COLUMNS * WIDTH,
                WIDTH - 1,
                HEIGHT - 1,
                Escaped(&title(cell, bytes))
            )?;
        }
    }
    writeln!(out, "</svg>")
}

/// The address of a cell, and what is in it.
fn title(cell: &Cell, bytes: u64) -> String {
    let counted = Use::ALL.into_iter().zip(cell.uses).filter(|(_, count)| *count > 0).rev();
    let uses =
        counted.map(|(usage, count)| format!("\n{}: {}", text::usage(usage), text::frames(count)));
    format!("{:#x}", u128::from(cell.number) * u128::from(bytes)) + &uses.collect::<String>()
}

fn rights(out: &mut String, audited: &Audited<'_>) -> fmt::Result {
    writeln!(
        out,
        "<h2>Pages by all mappings together</h2>\n<table>\n<tr><th>the kernel can</th>\
         <th class=\"number\">pages</th><th class=\"number\">of these, processes can read</th>\
         <th class=\"number\">processes can write</th></tr>"
    )?;
    for (bits, counts) in (0..).zip(&audited.survey.frames) {
        let (all, [_, read, write]) = (counts.iter().sum::<u64>(), counts);
        if all > 0 {
            let rights = text::rights(Rights::from_bits_truncate(bits));
            writeln!(
                out,
                "<tr><td><code>{rights}</code></td><td class=\"number\">{all}</td>\
                 <td class=\"number\">{}</td><td class=\"number\">{write}</td></tr>",
                read + write
            )?;
        }
    }
    writeln!(out, "</table>")
}

fn findings(out: &mut String, audited: &Audited<'_>) -> fmt::Result {
    let findings = &audited.survey.findings;
    if findings.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "<h2>Writable and executable, or executable and of a process</h2>\n<table>\n<tr><th>physical</th>\
         <th class=\"number\">pages</th><th>what is wrong</th><th>mappings</th></tr>"
    )?;
    for finding in findings.iter().take(MOST_SHOWN) {
        write!(
            out,
            "<tr><td><code>{:#x}</code></td><td class=\"number\">{}</td><td>{}</td><td>",
            finding.frames.start.start().raw(),
            finding.frames.count(),
            text::problem(finding)
        )?;
        for alias in &finding.aliases {
            line(out, audited, alias)?;
        }
        writeln!(out, "</td></tr>")?;
    }
    writeln!(out, "</table>")?;
    let more = findings.len().saturating_sub(MOST_SHOWN);
    if more > 0 {
        writeln!(out, "<p>And {more} more, which <code>--json</code> prints.</p>")?;
    }
    Ok(())
}

fn aliases(out: &mut String, audited: &Audited<'_>, title: &str, aliases: &[Alias]) -> fmt::Result {
    if aliases.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "<h2>{title}</h2>\n<table>\n<tr><th>physical</th><th class=\"number\">pages</th><th>mapping</th></tr>"
    )?;
    for alias in aliases.iter().take(MOST_SHOWN) {
        write!(
            out,
            "<tr><td><code>{:#x}</code></td><td class=\"number\">{}</td><td>",
            alias.gpa.raw(),
            alias.pages
        )?;
        line(out, audited, alias)?;
        writeln!(out, "</td></tr>")?;
    }
    writeln!(out, "</table>")
}

fn line(out: &mut String, audited: &Audited<'_>, alias: &Alias) -> fmt::Result {
    let (rights, place) = (text::rights(alias.rights), text::place(audited, alias));
    write!(out, "<div><code>{rights} {:#x}</code> {}</div>", alias.gva.raw(), Escaped(&place))
}

/// Text that cannot be taken for markup. Names come from the dump.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                letter if letter.is_control() && letter != '\n' => f.write_char('\u{fffd}')?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}
