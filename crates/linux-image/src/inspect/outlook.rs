//! What Ravelin can and cannot enforce on a kernel, and what it takes from it.

use super::Setting;
use crate::Summary;
use crate::layout::Layout;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prospect {
    /// Ravelin enforces it.
    Enforced,
    /// Ravelin enforces a part of it.
    Partly,
    /// The kernel's own use of it is refused as if it were an attack.
    Refused,
    /// Ravelin cannot enforce it.
    Not,
    /// The kernel does not have it.
    Absent,
}

impl fmt::Display for Prospect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforced => "enforced",
            Self::Partly => "partly",
            Self::Refused => "refused",
            Self::Not => "not enforced",
            Self::Absent => "absent",
        })
    }
}

/// How it stands with one thing, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// The thing.
    pub what: &'static str,
    /// How it stands.
    pub prospect: Prospect,
    /// Why.
    pub why: String,
}

/// The outlook for a kernel.
pub fn of(summary: &Summary, layout: &Layout, settings: &[Setting]) -> Vec<Outlook> {
    let on = |name: &str| settings.iter().any(|s| s.option == name && s.on == Some(true));
    let pages = |length: u32| length / 4096;
    let row = |what, prospect, why| Outlook { what, prospect, why };
    let absent = |option: &str| (Prospect::Absent, format!("the kernel has no {option}"));
    // A feature of the kernel that writes its text in a way that is not known to be legal yet.
    let refused = |option: &str, why: &str| {
        if on(option) { (Prospect::Refused, why.into()) } else { absent(option) }
    };
    let sites = |count: usize| match count {
        0 => (Prospect::Absent, "the kernel has no such sites".into()),
        _ => (Prospect::Enforced, format!("{count} sites change between legal contents only")),
    };
    let read_only = |length| {
        if on("STRICT_KERNEL_RWX") {
            (
                Prospect::Enforced,
                format!("{} pages, once the kernel made them read-only", pages(length)),
            )
        } else {
            (Prospect::Not, "the kernel leaves it writable (no STRICT_KERNEL_RWX)".into())
        }
    };
    let inside = {
        let (outer, inner) = (summary.rodata, layout.ro_after_init);
        outer.start <= inner.start && inner.end <= outer.end
    };
    let after_init = match read_only(layout.ro_after_init.length()) {
        (Prospect::Enforced, _) if !inside => {
            (Prospect::Partly, "it shares its first or last page with writable data".into())
        }
        other => other,
    };
    let modules = if !on("MODULES") {
        absent("MODULES")
    } else {
        let own = match (on("MODULE_SIG"), on("MODULE_SIG_FORCE")) {
            (_, true) => "the kernel itself demands signatures",
            (true, false) => "the kernel itself only notes missing signatures",
            (false, false) => "the kernel itself checks no signatures",
        };
        (Prospect::Partly, format!("their pages are W^X, their bytes are not authenticated; {own}"))
    };
    let jit = match (on("BPF_JIT"), on("BPF_JIT_ALWAYS_ON")) {
        (false, _) => absent("BPF_JIT"),
        (true, always) => {
            let choice = if always {
                "it has no interpreter, so that under jit = \"deny\" no BPF program runs"
            } else {
                "under jit = \"deny\" its interpreter is used"
            };
            (Prospect::Partly, format!("compiled, W^X, their bytes are not checked; {choice}"))
        }
    };
    let calls = summary.static_calls + summary.static_tail_calls + summary.static_conditionals;
    let text =
        format!("{} pages, from the first user-mode instruction on", pages(summary.text.length()));
    let has_tracer = on("DYNAMIC_FTRACE");
    let tracer = if has_tracer {
        let why = "places call the tracer or an exact copy of it only; needs modules";
        (Prospect::Enforced, format!("{} {why}", summary.traced))
    } else {
        absent("DYNAMIC_FTRACE")
    };
    let kprobes = if on("KPROBES") {
        let why = "at the first byte of an instruction only, outside of the kernel's blacklist; \
                   not optimised; needs modules";
        (Prospect::Enforced, why.into())
    } else {
        absent("KPROBES")
    };
    let live_patches = if on("LIVEPATCH") {
        (Prospect::Partly, "by the function tracer, to modules that are not authenticated".into())
    } else {
        absent("LIVEPATCH")
    };
    let debugger = if on("KGDB") {
        let why = "its breakpoints by the rules for kprobes; other writes to text are refused";
        (Prospect::Partly, why.into())
    } else {
        absent("KGDB")
    };
    let kexec = "both system calls; a kernel that leaves all the same is stopped";
    let rows = vec![
        ("kernel text", (Prospect::Enforced, text)),
        ("read-only data", read_only(summary.rodata.length())),
        ("data that is read-only after init", after_init),
        ("static keys", sites(summary.jump_labels)),
        ("static calls", sites(calls)),
        ("function tracer", tracer),
        ("kprobes", kprobes),
        ("live patches", live_patches),
        ("kernel debugger", debugger),
        (
            "adding the second CPU late",
            refused("SMP", "started with maxcpus=1, the kernel rewrites its lock prefixes then"),
        ),
        ("modules", modules),
        ("BPF programs", jit),
        ("kexec", (Prospect::Refused, kexec.into())),
    ];
    rows.into_iter().map(|(what, (prospect, why))| row(what, prospect, why)).collect()
}
