//! The words that table, JSON and page share.

use super::Audited;
use dump::survey::{Alias, Finding, Use};
use integrity::Rights;

/// `rwx`, with `-` for what is not allowed.
pub fn rights(rights: Rights) -> String {
    let letters = [(Rights::READ, 'r'), (Rights::WRITE, 'w'), (Rights::EXECUTE, 'x')];
    letters
        .map(|(right, letter)| if rights.contains(right) { letter } else { '-' })
        .iter()
        .collect()
}

/// A number of bytes in a unit that suits it.
pub fn bytes(bytes: u64) -> String {
    let (shift, unit) = match bytes {
        0..0x10_0000 => (10, "KiB"),
        0x10_0000..0x4000_0000 => (20, "MiB"),
        _ => (30, "GiB"),
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        tenth => format!("{}.{tenth} {unit}", tenths / 10),
    }
}

/// The memory in so many frames.
pub fn frames(frames: u64) -> String {
    bytes(frames << addr::PAGE_SHIFT)
}

/// What a frame of this use is.
pub const fn usage(usage: Use) -> &'static str {
    match usage {
        Use::Unmapped => "not mapped by the kernel",
        Use::Data => "writable data",
        Use::ReadOnly => "read-only data",
        Use::User => "pages of processes",
        Use::Code => "kernel code",
        Use::UserCode => "pages of processes that the kernel can execute",
        Use::Conflict => "writable and executable",
    }
}

/// What is wrong, in words.
pub fn problem(finding: &Finding) -> &'static str {
    match finding.usage() {
        Use::UserCode => "a process's page that the kernel can execute",
        _ if finding.is_single() => "a mapping is writable and executable",
        _ => "code that another mapping can write",
    }
}

/// What a mapping is.
pub fn place(audited: &Audited<'_>, alias: &Alias) -> String {
    audited.names.describe(alias.gva, alias.gpa)
}

/// One line that says how it went.
pub fn verdict(audited: &Audited<'_>) -> String {
    let survey = &audited.survey;
    if survey.is_clean() {
        return "nothing is writable and executable, no page of a process executable by the kernel, \
                no address of the kernel open to processes"
            .to_owned();
    }
    let parts = [
        (survey.conflicting, "pages writable and executable"),
        (survey.user_code, "pages of processes executable by the kernel"),
        (survey.open_pages, "pages of the kernel half open to processes"),
        (survey.outside_pages, "pages outside the dump writable and executable"),
    ];
    let found = parts.iter().filter(|(count, _)| *count > 0);
    found.map(|(count, what)| format!("{count} {what}")).collect::<Vec<_>>().join("; ")
}

/// What the reader must know about what could not be looked at.
pub fn gaps(audited: &Audited<'_>) -> Vec<String> {
    let (survey, memory) = (&audited.survey, &audited.dump.memory);
    let mut gaps = Vec::new();
    let mut note = |count: u64, text: &str| {
        if count > 0 {
            gaps.push(format!("{count} {text}"));
        }
    };
    note(memory.missing(), "pages are missing: the dump is cut off");
    note(survey.users.unreadable, "pages could not be read");
    note(survey.visited.unreadable, "page tables of the kernel are not in the dump");
    note(
        survey.users.cut_off.into(),
        "limit was reached: not every process's tables were followed",
    );
    note(survey.cut_off.into(), "limit was reached: not everything that was found is listed");
    gaps
}

/// The kernel's release, or what it says of itself.
pub fn kernel(audited: &Audited<'_>) -> Option<String> {
    let release = audited.dump.vmcoreinfo.as_ref().and_then(|info| info.release.clone());
    let banner = || audited.names.banner().and_then(|banner| banner.strip_prefix("Linux version "));
    release.or_else(|| banner()?.split(' ').next().map(str::to_owned))
}

/// Facts about the dump, with their names.
pub fn facts(audited: &Audited<'_>) -> Vec<(&'static str, String)> {
    let (dump, survey, root) = (audited.dump, &audited.survey, &audited.root);
    let [small, large, huge] = survey.leaves;
    let mut facts = vec![("dump", audited.path.display().to_string())];
    facts.extend(kernel(audited).map(|kernel| ("kernel", kernel)));
    facts.extend([
        (
            "memory",
            format!("{} in {} pieces", frames(dump.memory.frames()), dump.memory.pieces().len()),
        ),
        (
            "page tables",
            format!("{:#x}, {} levels ({})", root.table.raw(), root.levels, root.evidence),
        ),
        ("mappings", format!("{small} of 4 KiB, {large} of 2 MiB, {huge} of 1 GiB")),
        (
            "symbols",
            match audited.names.count() {
                0 => "none; give a System.map with --symbols".to_owned(),
                count => count.to_string(),
            },
        ),
        ("code", format!("{} pages, {} also mapped as data", survey.code(), survey.code_as_data)),
        ("processes", {
            let (pages, shared) = survey.of_processes();
            let roots = survey.users.roots;
            format!("{roots} root tables, {pages} pages, {shared} also mapped by the kernel")
        }),
    ]);
    facts
}
