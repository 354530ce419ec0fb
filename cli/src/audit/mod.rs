//! `ravelin audit`: what the page tables in a memory dump allow, as a table, JSON or a web page.

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
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ravelin::dump_file::DumpFile;
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

#[cfg(test)]
mod tests {
    use super::*;
    use dump::fake::{IMAGE, MODULES, Machine, NO_EXECUTE, USER, WRITE};
    use paging::Level::{Page2M, Page4K};
    use roxmltree::{Document, ParsingOptions};
    use serde_json::{Value, json};

    /// Symbols whose names would be markup.
    const SYMBOLS: &[u8] =
        b"ffffffff81000000 T _text\nffffffff81003000 T <script>&\"</svg>\nffffffff81200000 T e\n";

    /// Calls `f` with the audit of a machine with a page of code that can be written in two ways.
    fn audited<R>(f: impl FnOnce(&Audited<'_>) -> R) -> R {
        let mut machine = Machine::new(2048, 4);
        machine.map(Machine::ROOT, IMAGE, 2 << 20, Page2M, 0);
        machine.map(Machine::ROOT, MODULES, (2 << 20) + 0x3000, Page4K, WRITE | NO_EXECUTE);
        machine.map(Machine::ROOT, MODULES + 0x2000, 0xfee0_0000, Page4K, WRITE);
        machine.map(Machine::ROOT, MODULES + 0x4000, 0x10_0000, Page4K, USER | NO_EXECUTE);
        let process = machine.process();
        machine.map(process, 0x1000, (2 << 20) + 0x5000, Page4K, USER | NO_EXECUTE);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a<b>&.dump");
        std::fs::write(&path, machine.dump(&[0xa_0000])).unwrap();
        let dump = Dump::open(DumpFile::open(&path).unwrap()).unwrap();
        let (root, image) = dump.find_root(None).unwrap();
        let names = Names::new(&dump, &root, &image, Some(SYMBOLS)).unwrap();
        let survey = dump.survey(&root, |_| {}).unwrap();
        f(&Audited { path: &path, dump: &dump, root, names, survey })
    }

    #[test]
    fn the_page_is_well_formed_and_loads_nothing() {
        let page = audited(html::page);
        let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
        let document = Document::parse_with_options(&page, options).unwrap();
        let elements = || document.descendants().filter(|node| node.is_element());
        let foreign = elements().filter(|node| {
            let name = node.tag_name().name();
            let refers = |name: &str| matches!(name, "src" | "href" | "srcset" | "data" | "action");
            matches!(name, "script" | "link" | "img" | "iframe" | "object" | "image" | "use")
                || node.attributes().any(|a| refers(a.name()) || a.name().starts_with("on"))
        });
        assert_eq!(foreign.count(), 0);
        assert!(!page.contains("url(") && !page.contains("@import") && !page.contains("//"));
        // 8 MiB in frames, and the seven colours of the key.
        let cells = elements().filter(|node| node.has_tag_name("rect")).count();
        assert_eq!(cells, 2048 + 7);
        let class = |name: &str| elements().filter(|n| n.attribute("class") == Some(name)).count();
        assert_eq!((class("conflict"), class("user-code"), class("code")), (2, 2, 511));
        let text: String = document.descendants().filter_map(|node| node.text()).collect();
        assert!(text.contains("<script>&\"</svg>+0x0"));
        assert!(text.contains("0xffffffffc0000000"));
    }

    #[test]
    fn json_names_every_mapping_of_a_finding() {
        let value = audited(json::json);
        assert_eq!(value["clean"], json!(false));
        assert_eq!(value["uses"]["writable_executable"], json!(1));
        let [first, second] = value["findings"].as_array().unwrap().as_slice() else { panic!() };
        assert_eq!((&first["gpa"], &first["pages"]), (&json!("0x203000"), &json!(1)));
        let places: Vec<&Value> =
            first["mappings"].as_array().unwrap().iter().map(|m| &m["place"]).collect();
        assert_eq!(places, [&json!("<script>&\"</svg>+0x0"), &json!("modules")]);
        assert_eq!(second["use"], json!("process_code"));
        assert_eq!(value["open_to_processes"][0]["gva"], json!("0xffffffffc0004000"));
        assert_eq!(value["outside"][0]["gpa"], json!("0xfee00000"));
    }

    #[test]
    fn tables_say_what_is_wrong() {
        let text = audited(table::tables);
        for part in [
            "code that another mapping can write",
            "rw- 0xffffffffc0000000 modules",
            "a process's page that the kernel can execute",
            "1 pages writable and executable; 1 pages of processes executable by the kernel; \
             1 pages of the kernel half open to processes; \
             1 pages outside the dump writable and executable",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn sizes_have_suitable_units() {
        let text = [0, 4096, 0x10_0000, 0x15_0000, 5 << 30].map(text::bytes);
        assert_eq!(text, ["0 KiB", "4 KiB", "1 MiB", "1.3 MiB", "5 GiB"]);
    }
}
