//! `ravelin prepare`: a kernel's manifest, and what is in it.

use crate::args::Prepare;
use anyhow::Context;
use linux_image::Summary;
use ravelin::table::table;
use ravelin::{cache, check};
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// Writes the manifest and prints a summary.
///
/// # Errors
/// The kernel cannot be read or is none, or the manifest cannot be written.
pub fn prepare(args: &Prepare) -> anyhow::Result<ExitCode> {
    let kernel = check::read("kernel", &args.kernel)?;
    let bytes = cache::make(&kernel)
        .with_context(|| format!("no manifest can be made of {}", args.kernel.display()))?;
    let file = if args.resident {
        linux_image::without_symbols(&bytes)?
    } else {
        linux_image::pack(&bytes)
    };
    cache::write_atomically(&args.output, &file)?;
    let summary = rows(&Summary::from_manifest(&bytes)?, file.len());
    if args.json {
        anstream::println!("{}", Value::Object(summary));
    } else {
        let mut table = table([""; 0]);
        for (name, value) in summary {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            table.add_row([name.replace('_', " "), value]);
        }
        anstream::println!("{table}");
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(summary: &Summary, file_bytes: usize) -> Map<String, Value> {
    let calls = [summary.static_calls, summary.static_tail_calls, summary.static_conditionals];
    let rows = [
        ("kernel", json!(summary.release)),
        ("kernel_bytes", json!(summary.kernel_length)),
        ("kernel_digest", json!(format!("{:016x}", summary.kernel_digest))),
        ("text_bytes", json!(summary.text.length())),
        ("rodata_bytes", json!(summary.rodata.length())),
        ("ro_after_init_bytes", json!(summary.ro_after_init.length())),
        ("jump_labels", json!(summary.jump_labels)),
        ("static_calls", json!(calls.iter().sum::<usize>())),
        ("traced_functions", json!(summary.traced)),
        ("faulting_instructions", json!(summary.faulting)),
        ("functions", json!(summary.functions)),
        ("symbols", json!(summary.symbols)),
        ("file_bytes", json!(file_bytes)),
        ("resident_bytes", json!(summary.resident_length)),
    ];
    rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
