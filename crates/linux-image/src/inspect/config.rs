//! The kernel's configuration, as far as it matters here, and how each answer is known.
//!
//! A kernel with `CONFIG_IKCONFIG` carries its configuration file, and that is taken. Distributions
//! leave it out; then an option is read from what it leaves in the image: a symbol that only exists
//! with it (or only without it), an entry of a table, the first value of a variable, a sentence in
//! the boot stub.

use crate::decompress::decompress;
use crate::write::Parts;
use crate::{ImageError, bytes, setup};
use abi::manifest::{Site, SiteKind};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Longest embedded configuration that is looked at, in bytes.
const CONFIG_LIMIT: u64 = 4 << 20;

/// One option of the kernel's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Name without `CONFIG_`.
    pub option: &'static str,
    /// Whether it is on; `None` if it cannot be told.
    pub on: Option<bool>,
    /// How that is known.
    pub evidence: String,
}

/// How an option shows.
#[derive(Clone, Copy)]
enum Sign {
    /// This symbol exists only with it.
    With(&'static str),
    /// This symbol exists only without it, while the other exists in both cases.
    Without { only_without: &'static str, in_both: &'static str },
    /// A flag variable starts as 1.
    Flag(&'static str),
    /// The boot stub, which is not compressed, has this text.
    Stub(&'static str),
    /// There are patch sites of this kind.
    Sites(SiteKind),
}

const SIGNS: [(&str, Sign); 19] = [
    ("STRICT_KERNEL_RWX", Sign::With("rodata_enabled")),
    ("RANDOMIZE_BASE", Sign::Stub("KASLR disabled: 'nokaslr' on cmdline.")),
    ("RANDOMIZE_MEMORY", Sign::With("kernel_randomize_memory")),
    ("JUMP_LABEL", Sign::Sites(SiteKind::JumpLabel)),
    ("HAVE_STATIC_CALL_INLINE", Sign::Sites(SiteKind::StaticCall)),
    ("DYNAMIC_FTRACE", Sign::With("__start_mcount_loc")),
    ("KPROBES", Sign::With("register_kprobe")),
    ("OPTPROBES", Sign::With("optprobe_template_entry")),
    ("LIVEPATCH", Sign::With("klp_enable_patch")),
    ("BPF_JIT", Sign::With("bpf_jit_enable")),
    (
        "BPF_JIT_ALWAYS_ON",
        Sign::Without { only_without: "___bpf_prog_run", in_both: "bpf_prog_select_runtime" },
    ),
    ("MODULES", Sign::With("load_module")),
    ("MODULE_SIG", Sign::With("mod_verify_sig")),
    ("MODULE_SIG_FORCE", Sign::Flag("sig_enforce")),
    ("SECURITY_LOCKDOWN_LSM", Sign::With("lock_kernel_down")),
    ("KEXEC_CORE", Sign::With("machine_kexec")),
    ("X86_KERNEL_IBT", Sign::With("ibt_save")),
    ("KGDB", Sign::With("kgdb_connected")),
    ("SMP", Sign::With("alternatives_enable_smp")),
];

/// All options that matter.
///
/// # Errors
/// The file is no bzImage.
pub fn settings(parts: &Parts<'_>) -> Result<Vec<Setting>, ImageError> {
    let stub = setup::parse(parts.file)?.stub;
    let embedded = embedded(parts);
    let setting = |&(option, sign): &(&'static str, Sign)| match &embedded {
        Some(text) => from_text(option, text),
        None => {
            let (on, evidence) = sign.read(parts, stub);
            Setting { option, on, evidence }
        }
    };
    Ok(SIGNS.iter().map(setting).collect())
}

/// The configuration file inside the kernel.
fn embedded(parts: &Parts<'_>) -> Option<String> {
    let start = parts.symbols.address_of("kernel_config_data")?;
    let end = parts.symbols.address_of("kernel_config_data_end")?;
    let length = end.checked_sub(start).filter(|&length| length < CONFIG_LIMIT)?;
    let packed = parts.image.bytes(start, usize::try_from(length).ok()?)?;
    String::from_utf8(decompress(packed).ok()?).ok()
}

fn from_text(option: &'static str, text: &str) -> Setting {
    let name = format!("CONFIG_{option}");
    let value = text.lines().find_map(|line| line.strip_prefix(&name)?.strip_prefix('='));
    let evidence = match value {
        Some(value) => format!("{name}={value} in the embedded configuration"),
        None => format!("no {name} in the embedded configuration"),
    };
    Setting { option, on: Some(value == Some("y")), evidence }
}

impl Sign {
    fn read(self, parts: &Parts<'_>, stub: &[u8]) -> (Option<bool>, String) {
        let address = |name| parts.symbols.address_of(name);
        match self {
            Self::With(name) => {
                let there = address(name).is_some();
                (Some(there), format!("{} {name}", if there { "symbol" } else { "no symbol" }))
            }
            Self::Without { only_without, in_both } => {
                match (address(only_without), address(in_both)) {
                    (Some(_), _) => (Some(false), format!("symbol {only_without}")),
                    (None, Some(_)) => {
                        (Some(true), format!("symbol {in_both} but no {only_without}"))
                    }
                    (None, None) => (Some(false), format!("no symbol {in_both}")),
                }
            }
            Self::Flag(name) => match address(name) {
                None => (Some(false), format!("no symbol {name}")),
                Some(address) => match parts.image.bytes(address, 1) {
                    Some([0]) => (Some(false), format!("{name} starts as 0")),
                    Some(_) => (Some(true), format!("{name} starts as 1")),
                    None if parts.image.offset(address).is_some() => {
                        (Some(false), format!("{name} starts as 0 (in .bss)"))
                    }
                    None => (None, format!("{name} is not in the image")),
                },
            },
            Self::Stub(text) => {
                let there = bytes::contains(stub, text.as_bytes());
                let evidence = if there { "" } else { "no " }.to_string();
                (Some(there), format!("{evidence}text \"{text}\" in the boot stub"))
            }
            Self::Sites(kind) => {
                let of_kind = |site: &&Site| site.kind == kind as u8;
                let count = parts.sites.iter().filter(of_kind).count();
                (Some(count > 0), format!("{count} entries in the kernel's table"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_whole_names() {
        let text = "CONFIG_MODULE_SIG_FORCE=y\n# CONFIG_KGDB is not set\nCONFIG_LIVEPATCH=n\n";
        assert_eq!(from_text("MODULE_SIG_FORCE", text).on, Some(true));
        assert_eq!(from_text("MODULE_SIG", text).on, Some(false));
        assert_eq!(from_text("KGDB", text).on, Some(false));
        assert_eq!(from_text("LIVEPATCH", text).on, Some(false));
    }
}
