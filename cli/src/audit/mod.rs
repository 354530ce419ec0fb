//! `ravelin audit`: what the page tables in a memory dump allow, as a table, JSON or a web page.

mod file;
mod html;
mod json;
mod table;
mod text;

use crate::args::Audit;
use anyhow::Context;
use dump::Dump;
use dump::names::Names;
use dump::root::Root;
use dump::survey::Survey;
use file::DumpFile;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ravelin::{cache, check};
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

/// An audit that was done, and what is needed to put it into words.
pub struct Audited<'a> {
    /// The file.
    path: &'a Path,
    /// Its headers.
    dump: &'a Dump<DumpFile>,
    /// The kernel's page tables.
    root: Root,
    /// Names for addresses.
    names: Names,
    /// The result.
    survey: Survey,
}

/// Audits the dump and says what was found.
///
/// # Errors
/// The dump cannot be read, or no kernel was found in it.
pub fn audit(args: &Audit) -> anyhow::Result<ExitCode> {
    let cannot = || format!("{} cannot be audited", args.dump.display());
    let symbols = args.symbols.as_deref().map(|path| check::read("symbols", path)).transpose()?;
    let dump = Dump::open(DumpFile::open(&args.dump)?).with_context(cannot)?;
    let (root, image) = dump.find_root(args.cr3).with_context(cannot)?;
    let names = Names::new(&dump, &root, &image, symbols.as_deref())?;
    let bar = progress_bar(dump.memory.frames() << addr::PAGE_SHIFT);
    let survey = dump.survey(&root, |done| bar.set_position(done)).with_context(cannot);
    bar.finish_and_clear();
    let audited = Audited { path: &args.dump, dump: &dump, root, names, survey: survey? };
    if let Some(path) = &args.html {
        cache::write_atomically(path, html::page(&audited).as_bytes())?;
    }
    if args.json {
        anstream::println!("{:#}", json::json(&audited));
    } else {
        anstream::print!("{}", table::tables(&audited));
    }
    Ok(ExitCode::from(u8::from(!audited.survey.is_clean())))
}

/// A bar for bytes, where somebody sees it.
fn progress_bar(bytes: u64) -> ProgressBar {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(bytes), target);
    let template =
        "search {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
