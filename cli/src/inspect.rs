//! `ravelin inspect`: what a kernel file holds, and what that means for Ravelin.
//!
//! The tables on the screen and the JSON are made from the same blocks, so they say the same.

use crate::args::Inspect;
use abi::manifest::{Manifest, SiteKind, TRACED_LENGTH};
use anyhow::Context;
use comfy_table::{ContentArrangement, Table};
use linux_image::{Inspection, SymbolTable};
use ravelin::check;
use ravelin::table::table;
use serde_json::{Map, Value, json};
use std::process::ExitCode;
use zerocopy::IntoBytes;

/// Prints what is known about a kernel.
///
/// # Errors
/// The kernel cannot be read, or Ravelin cannot run it: the message says why.
pub fn inspect(args: &Inspect) -> anyhow::Result<ExitCode> {
    let kernel = check::read("kernel", &args.kernel)?;
    let name = || format!("Ravelin cannot run {}", args.kernel.display());
    let inspection = linux_image::inspect(&kernel).with_context(name)?;
    let mut blocks = blocks(&inspection);
    if args.sites {
        blocks.push(sites(&inspection.manifest)?);
    }
    if args.json {
        let object: Map<_, _> = blocks.into_iter().map(|b| (b.name.to_owned(), b.json())).collect();
        anstream::println!("{}", Value::Object(object));
    } else {
        for block in blocks {
            anstream::println!("{}\n{}\n", block.name.replace('_', " "), block.table());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Rows under one heading. Without columns a row is a name and a value.
struct Block {
    name: &'static str,
    columns: &'static [&'static str],
    rows: Vec<Vec<Value>>,
}

impl Block {
    fn json(self) -> Value {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if self.columns.is_empty() {
            let pair = |row: Vec<Value>| {
                let mut row = row.into_iter();
                Some((text(&row.next()?), row.next()?))
            };
            return Value::Object(self.rows.into_iter().filter_map(pair).collect());
        }
        let object = |row: Vec<Value>| -> Value {
            Value::Object(self.columns.iter().map(|&name| name.to_owned()).zip(row).collect())
        };
        Value::Array(self.rows.into_iter().map(object).collect())
    }

    fn table(&self) -> Table {
        let mut table = table(self.columns.iter().map(|name| name.replace('_', " ")));
        table.set_content_arrangement(ContentArrangement::Dynamic);
        let cell = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Bool(true) => "yes".into(),
            Value::Bool(false) => "no".into(),
            Value::Null => "unknown".into(),
            other => other.to_string(),
        };
        for row in &self.rows {
            let mut cells: Vec<String> = row.iter().map(cell).collect();
            if let ([], [name, ..]) = (self.columns, cells.as_mut_slice()) {
                *name = name.replace('_', " ");
            }
            table.add_row(cells);
        }
        table
    }
}

fn blocks(inspection: &Inspection) -> Vec<Block> {
    let mut blocks = vec![kernel(inspection), sections(inspection), shared(inspection)];
    blocks.extend([patch_sites(inspection), configuration(inspection), keys(inspection)]);
    let rows = inspection.outlook.iter();
    let rows = rows.map(|o| vec![json!(o.what), json!(o.prospect.to_string()), json!(o.why)]);
    blocks.push(Block {
        name: "under_ravelin",
        columns: &["what", "state", "why"],
        rows: rows.collect(),
    });
    blocks
}

fn kernel(inspection: &Inspection) -> Block {
    let summary = &inspection.summary;
    let rows = [
        ("release", json!(summary.release)),
        ("file_bytes", json!(summary.kernel_length)),
        ("digest", json!(format!("{:016x}", summary.kernel_digest))),
        ("compression", json!(inspection.compression.to_string())),
        ("decompressed_bytes", json!(inspection.decompressed)),
        ("linked_at", json!(format!("{:#x}", summary.link_base))),
        ("bytes_in_memory", json!(summary.image_length)),
        ("locked_text_bytes", json!(summary.text.length())),
        ("locked_rodata_bytes", json!(summary.rodata.length())),
        ("ro_after_init_bytes", json!(summary.ro_after_init.length())),
        ("init_text_bytes", json!(summary.init_text.length())),
        ("functions", json!(summary.functions)),
        ("symbols", json!(summary.symbols)),
        ("faulting_instructions", json!(summary.faulting)),
        ("parts_without_kprobes", json!(summary.unprobed)),
        ("manifest_bytes_resident", json!(summary.resident_length)),
    ];
    let rows = rows.into_iter().map(|(name, value)| vec![json!(name), value]).collect();
    Block { name: "kernel", columns: &[], rows }
}

fn sections(inspection: &Inspection) -> Block {
    let rows = inspection.sections.iter().map(|section| {
        let flag = |on, letter| if on { letter } else { "-" };
        let rights = ["r", flag(section.writable, "w"), flag(section.executable, "x")].concat();
        let offset = format!("{:#x}", section.offset);
        vec![json!(section.name), json!(offset), json!(section.length), json!(rights)]
    });
    Block {
        name: "sections",
        columns: &["section", "offset", "bytes", "linked_as"],
        rows: rows.collect(),
    }
}

fn shared(inspection: &Inspection) -> Block {
    let rows = inspection.shared.iter().map(|shared| {
        let offset = format!("{:#x}", shared.offset);
        vec![json!(shared.what), json!(offset), json!(shared.length), json!(shared.pages)]
    });
    Block {
        name: "text_pages_that_hold_something_else",
        columns: &["what", "offset", "bytes", "pages"],
        rows: rows.collect(),
    }
}

fn patch_sites(inspection: &Inspection) -> Block {
    let summary = &inspection.summary;
    let rows = [
        ("jump label", summary.jump_labels, "NOP, or a jump to its target"),
        ("static call", summary.static_calls, "call of a function, NOP, or zeroing of eax"),
        ("static tail call", summary.static_tail_calls, "jump to a function, or return"),
        ("conditional tail call", summary.static_conditionals, "conditional jump to a function"),
        ("traced function", summary.traced, "NOP, or call of a tracer"),
        ("tracer's own call", summary.tracer_calls, "call of a function"),
    ];
    let row = |(kind, count, contents)| vec![json!(kind), json!(count), json!(contents)];
    Block {
        name: "patch_sites",
        columns: &["kind", "count", "contents"],
        rows: rows.into_iter().map(row).collect(),
    }
}

fn configuration(inspection: &Inspection) -> Block {
    let rows = inspection.settings.iter();
    let rows = rows.map(|s| vec![json!(s.option), json!(s.on), json!(s.evidence)]);
    Block { name: "configuration", columns: &["option", "on", "evidence"], rows: rows.collect() }
}

fn keys(inspection: &Inspection) -> Block {
    let certificates = inspection.keys.certificates.iter();
    let mut rows: Vec<_> =
        certificates.map(|c| vec![json!(c.subject), json!(c.issuer), json!(c.not_after)]).collect();
    if let Some(remark) = &inspection.keys.remark {
        rows.push(vec![json!(remark), json!(""), json!("")]);
    }
    Block { name: "trusted_certificates", columns: &["subject", "issuer", "not_after"], rows }
}

/// Every single site.
fn sites(manifest: &[u8]) -> anyhow::Result<Block> {
    let symbols = SymbolTable::from_manifest(manifest)?;
    let place = |offset: u32| match symbols.lookup(offset.into()) {
        Some((name, 0)) => json!(name),
        Some((name, above)) => json!(format!("{name}+{above:#x}")),
        None => json!(format!("{offset:#x}")),
    };
    // A manifest wants memory that is aligned for it.
    let mut words = vec![0_u64; manifest.len().div_ceil(8)];
    let aligned = words.as_mut_bytes().get_mut(..manifest.len()).unwrap_or_default();
    aligned.copy_from_slice(manifest);
    let manifest = Manifest::parse(aligned).map_err(linux_image::ImageError::Manifest)?;
    let name = |kind| match SiteKind::from_number(kind) {
        Some(SiteKind::JumpLabel) => "jump label",
        Some(SiteKind::StaticCall) => "static call",
        Some(SiteKind::StaticTailCall) => "static tail call",
        Some(SiteKind::StaticConditional) => "conditional tail call",
        Some(SiteKind::TracerCall) => "tracer's own call",
        None => "unknown",
    };
    let mut rows: Vec<(u32, Vec<Value>)> = Vec::new();
    for site in manifest.sites() {
        let target = if site.target == 0 { json!("") } else { place(site.target) };
        let offset = json!(format!("{:#x}", site.offset));
        let row =
            vec![offset, place(site.offset), json!(name(site.kind)), json!(site.length), target];
        rows.push((site.offset, row));
    }
    for &offset in manifest.traced() {
        let (at, length) = (json!(format!("{offset:#x}")), json!(TRACED_LENGTH));
        rows.push((offset, vec![at, place(offset), json!("traced function"), length, json!("")]));
    }
    rows.sort_by_key(|&(offset, _)| offset);
    Ok(Block {
        name: "sites",
        columns: &["offset", "place", "kind", "bytes", "target"],
        rows: rows.into_iter().map(|(_, row)| row).collect(),
    })
}
