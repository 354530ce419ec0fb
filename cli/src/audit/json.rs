//! The result for programs. Addresses are hexadecimal text, since JSON's numbers do not hold 64 bits
//! everywhere.

use super::{Audited, text};
use dump::survey::{Alias, Finding, Use};
use integrity::Rights;
use serde_json::{Map, Value, json};

/// The whole result.
pub fn json(audited: &Audited<'_>) -> Value {
    let (dump, survey, root) = (audited.dump, &audited.survey, &audited.root);
    let [small, large, huge] = survey.leaves;
    let (of_processes, also_kernel) = survey.of_processes();
    let uses = Use::ALL.iter().map(|usage| (name(*usage).to_owned(), json!(survey.count(*usage))));
    let list = |aliases: &[Alias]| -> Vec<Value> {
        aliases.iter().map(|alias| mapping(audited, alias)).collect()
    };
    json!({
        "dump": audited.path.display().to_string(),
        "kernel": text::kernel(audited),
        "clean": survey.is_clean(),
        "verdict": text::verdict(audited),
        "gaps": text::gaps(audited),
        "frames": dump.memory.frames(),
        "root": {
            "address": hex(root.table.raw()),
            "levels": root.levels,
            "evidence": root.evidence.to_string(),
        },
        "symbols": audited.names.count(),
        "leaves": { "4k": small, "2m": large, "1g": huge },
        "tables": survey.visited.tables,
        "process_roots": survey.users.roots,
        "process_tables": survey.users.tables,
        "uses": uses.collect::<Map<_, _>>(),
        "rights": by_rights(audited),
        "code": { "pages": survey.code(), "also_data": survey.code_as_data },
        "process_pages": { "pages": of_processes, "also_kernel": also_kernel },
        "findings": survey.findings.iter().map(|found| finding(audited, found)).collect::<Vec<_>>(),
        "open_to_processes": list(&survey.open),
        "outside": list(&survey.outside),
    })
}

const fn name(usage: Use) -> &'static str {
    match usage {
        Use::Unmapped => "unmapped",
        Use::Data => "data",
        Use::ReadOnly => "read_only",
        Use::User => "process",
        Use::Code => "code",
        Use::UserCode => "process_code",
        Use::Conflict => "writable_executable",
    }
}

fn by_rights(audited: &Audited<'_>) -> Vec<Value> {
    let rows =
        (0..).zip(&audited.survey.frames).filter(|(_, counts)| counts.iter().any(|n| *n > 0));
    let row = |(bits, [none, read, write]): (u8, &[u64; 3])| {
        json!({
            "kernel": text::rights(Rights::from_bits_truncate(bits)),
            "no_process": none,
            "processes_read": read,
            "processes_write": write,
        })
    };
    rows.map(row).collect()
}

fn finding(audited: &Audited<'_>, finding: &Finding) -> Value {
    let mappings = finding.aliases.iter().map(|alias| mapping(audited, alias));
    json!({
        "use": name(finding.usage()),
        "problem": text::problem(finding),
        "gpa": hex(finding.frames.start.start().raw()),
        "pages": finding.frames.count(),
        "kernel": text::rights(finding.kernel),
        "processes": text::rights(finding.user),
        "mappings": mappings.collect::<Vec<_>>(),
    })
}

fn mapping(audited: &Audited<'_>, alias: &Alias) -> Value {
    json!({
        "gva": hex(alias.gva.raw()),
        "gpa": hex(alias.gpa.raw()),
        "pages": alias.pages,
        "leaf": text::frames(alias.level.frames()),
        "rights": text::rights(alias.rights),
        "user": alias.user,
        "place": text::place(audited, alias),
        "area": audited.names.area(alias.gva),
    })
}

fn hex(value: u64) -> String {
    format!("{value:#x}")
}
