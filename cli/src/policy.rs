//! The policy file: TOML for people, [`abi::policy::Policy`] for the hypervisor.
//!
//! Every key may be left out; an unknown key or value is an error that names its line.

use abi::event::ViolationKind;
use abi::policy::{
    HekiExec, Modules, Patching, Platform, Policy, Reaction, SupervisorExec, Tables, Warden,
};
use anyhow::Context;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Longest policy file, in bytes.
const LIMIT: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum Exec {
    Off,
    Views,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum Code {
    Deny,
    Unauthenticated,
}

/// A policy to begin with.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Preset {
    Audit,
    Standard,
    Strict,
}

impl Preset {
    fn policy(self) -> Policy {
        let standard = Policy::default();
        match self {
            Self::Standard => standard,
            Self::Audit => Policy { reactions: [Reaction::Log; ViolationKind::COUNT], ..standard },
            Self::Strict => Policy {
                modules: Modules::Deny,
                patching: Patching {
                    ftrace: false,
                    kprobes: false,
                    livepatch: false,
                    ..standard.patching
                },
                jit: false,
                platform: Platform::Known,
                ..standard
            },
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Choice {
    Allow,
    Deny,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchingTable {
    jump_label: Option<Choice>,
    static_call: Option<Choice>,
    ftrace: Option<Choice>,
    kprobes: Option<Choice>,
    livepatch: Option<Choice>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum Request {
    Trust,
    Verify,
    Deny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum Machines {
    Any,
    Known,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum Watching {
    Off,
    Watch,
    Guard,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Log,
    Deny,
    Stop,
    Ask,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WardenTable {
    stop_after: Option<Spanned<u32>>,
    within_seconds: Option<u32>,
    heki_configure: Option<Choice>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct KexecTable {
    #[serde(default)]
    kernels: Vec<Spanned<PathBuf>>,
}

/// What a policy file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyFile {
    /// For the hypervisor.
    pub policy: Policy,
    /// The kernels that may be started by kexec, as many as the policy says.
    pub kernels: Vec<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    preset: Option<Preset>,
    /// By the other name it is called after what it needs on AMD: a user and a kernel view.
    #[serde(alias = "user_kernel_view")]
    supervisor_exec: Option<Exec>,
    modules: Option<Code>,
    announce: Option<bool>,
    heki_exec: Option<Request>,
    jit: Option<Choice>,
    platform: Option<Machines>,
    tables: Option<Watching>,
    #[serde(default)]
    patching: PatchingTable,
    #[serde(default)]
    reactions: BTreeMap<Spanned<String>, Answer>,
    #[serde(default)]
    warden: WardenTable,
    #[serde(default)]
    kexec: KexecTable,
}

/// Reads the policy file at `path`.
///
/// # Errors
/// The file cannot be read, or is no policy: the message names the line and what is allowed there.
pub fn load(path: &Path) -> anyhow::Result<PolicyFile> {
    let text = read(path)?;
    parse(&text).with_context(|| format!("the policy file {} is not valid", path.display()))
}

/// What the policy file at `path` says, or the standard policy if there is none.
///
/// # Errors
/// As for [`load`].
pub fn load_if_given(path: Option<&Path>) -> anyhow::Result<PolicyFile> {
    path.map_or_else(|| Ok(PolicyFile::default()), load)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read the policy file {}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(cannot)?;
    file.take(LIMIT + 1).read_to_string(&mut text).with_context(cannot)?;
    let fits = text.len() as u64 <= LIMIT;
    anyhow::ensure!(fits, "the policy file {} is longer than {LIMIT} bytes", path.display());
    Ok(text)
}

/// Reads the text of a policy file.
///
/// # Errors
/// See [`load`].
pub fn parse(text: &str) -> anyhow::Result<PolicyFile> {
    let file: File = toml::from_str(text)?;
    let mut policy = file.preset.unwrap_or(Preset::Standard).policy();
    match file.supervisor_exec {
        Some(Exec::Off) => policy.supervisor_exec = SupervisorExec::Off,
        Some(Exec::Views) => policy.supervisor_exec = SupervisorExec::Views,
        None => {}
    }
    match file.modules {
        Some(Code::Deny) => policy.modules = Modules::Deny,
        Some(Code::Unauthenticated) => policy.modules = Modules::Unauthenticated,
        None => {}
    }
    policy.announce = file.announce.unwrap_or(policy.announce);
    let Patching { jump_label, static_call, ftrace, kprobes, livepatch } = &mut policy.patching;
    for (choice, allowed) in [
        (file.patching.jump_label, jump_label),
        (file.patching.static_call, static_call),
        (file.patching.ftrace, ftrace),
        (file.patching.kprobes, kprobes),
        (file.patching.livepatch, livepatch),
        (file.jit, &mut policy.jit),
    ] {
        *allowed = choice.map_or(*allowed, |choice| choice == Choice::Allow);
    }
    match file.heki_exec {
        Some(Request::Trust) => policy.heki_exec = HekiExec::Trust,
        Some(Request::Verify) => policy.heki_exec = HekiExec::Verify,
        Some(Request::Deny) => policy.heki_exec = HekiExec::Deny,
        None => {}
    }
    policy.platform = match file.platform {
        Some(Machines::Any) => Platform::Any,
        Some(Machines::Known) => Platform::Known,
        None => policy.platform,
    };
    policy.tables = match file.tables {
        Some(Watching::Off) => Tables::Off,
        Some(Watching::Watch) => Tables::Watch,
        Some(Watching::Guard) => Tables::Guard,
        None => policy.tables,
    };
    policy.warden = warden(text, &file.warden)?;
    let kernels = kernels(text, file.kexec.kernels)?;
    policy.kexec = u8::try_from(kernels.len())?;
    let default = file.reactions.iter().find(|(name, _)| name.get_ref() == "default");
    if let Some((_, reaction)) = default {
        policy.reactions = [reaction_of(*reaction); ViolationKind::COUNT];
    }
    for (name, reaction) in &file.reactions {
        let kind = ViolationKind::ALL.into_iter().find(|kind| kind.name() == name.get_ref());
        match kind.and_then(|kind| policy.reactions.get_mut(kind as usize)) {
            Some(slot) => *slot = reaction_of(*reaction),
            None if name.get_ref() == "default" => {}
            None => {
                let (line, column) = position(text, name.span().start);
                let known: Vec<&str> = ViolationKind::ALL.iter().map(|kind| kind.name()).collect();
                anyhow::bail!(
                    "line {line}, column {column}: `{}` is no kind of violation; there are \
                     default, {}",
                    name.get_ref(),
                    known.join(", ")
                );
            }
        }
    }
    Ok(PolicyFile { policy, kernels })
}

/// The kernels that the file names.
fn kernels(text: &str, list: Vec<Spanned<PathBuf>>) -> anyhow::Result<Vec<PathBuf>> {
    let most = usize::from(Policy::MOST_KERNELS);
    if let Some(first) = list.get(most) {
        let (line, _) = position(text, first.span().start);
        anyhow::bail!("line {line}: there are more than {most} kernels for kexec");
    }
    Ok(list.into_iter().map(Spanned::into_inner).collect())
}

impl PolicyFile {
    /// The file that [`parse`] reads back as `self`, every key spelt out but the preset.
    pub fn to_toml(&self) -> String {
        let names = self.kernels.iter().map(|path| path.to_string_lossy().into_owned());
        let names = toml::Value::Array(names.map(toml::Value::String).collect());
        written(&self.policy, &names.to_string())
    }
}

/// `policy` with the keys of a policy file; in place of the kernels, whose names the hypervisor does
/// not know, stands their number.
pub fn to_toml(policy: &Policy) -> String {
    written(policy, &policy.kexec.to_string())
}

fn written(policy: &Policy, kernels: &str) -> String {
    let exec = match policy.supervisor_exec {
        SupervisorExec::Off => "off",
        SupervisorExec::Views => "views",
    };
    let modules = match policy.modules {
        Modules::Deny => "deny",
        Modules::Unauthenticated => "unauthenticated",
    };
    let heki_exec = match policy.heki_exec {
        HekiExec::Trust => "trust",
        HekiExec::Verify => "verify",
        HekiExec::Deny => "deny",
    };
    let in_force = policy.patching_in_force();
    // Writing to a String cannot fail.
    let mut text = String::new();
    let _ = write!(
        text,
        "supervisor_exec = \"{exec}\"\nmodules = \"{modules}\"\nannounce = {}\n\
         heki_exec = \"{heki_exec}\"\n{}platform = \"{}\"\ntables = \"{}\"\n\n[patching]\n",
        policy.announce,
        choice("jit", policy.jit, policy.jit_in_force(), "modules"),
        policy.platform.name(),
        policy.tables.name(),
    );
    for (key, allowed, in_force, needs) in [
        ("jump_label", policy.patching.jump_label, in_force.jump_label, ""),
        ("static_call", policy.patching.static_call, in_force.static_call, ""),
        ("ftrace", policy.patching.ftrace, in_force.ftrace, "modules"),
        ("kprobes", policy.patching.kprobes, in_force.kprobes, "modules"),
        ("livepatch", policy.patching.livepatch, in_force.livepatch, "modules and ftrace"),
    ] {
        text += &choice(key, allowed, in_force, needs);
    }
    text += "\n[reactions]\n";
    for (kind, reaction) in ViolationKind::ALL.iter().zip(policy.reactions) {
        let _ = writeln!(text, "{} = \"{}\"", kind.name(), reaction.name());
    }
    let Warden { stop_after, within_seconds, heki_configure } = policy.warden;
    let heki_configure = choice("heki_configure", heki_configure, heki_configure, "");
    let _ = write!(
        text,
        "\n[warden]\nstop_after = {stop_after}\nwithin_seconds = {within_seconds}\n{heki_configure}"
    );
    let in_vain = if policy.kexec > 0 && !policy.kexec_in_force() {
        " # denied all the same: it needs supervisor_exec"
    } else {
        ""
    };
    let _ = writeln!(text, "\n[kexec]\nkernels = {kernels}{in_vain}");
    let told: String = policy.kernel_arguments().collect();
    let _ = writeln!(text, "\n# The kernel's command line will begin with:\n# {}", told.trim_end());
    text
}

/// The line of a key that allows something; it says so where that is in vain.
fn choice(key: &str, allowed: bool, in_force: bool, needs: &str) -> String {
    let value = if allowed { "allow" } else { "deny" };
    let in_vain = if allowed && !in_force {
        format!(" # denied all the same: it needs {needs}")
    } else {
        String::new()
    };
    format!("{key} = \"{value}\"{in_vain}\n")
}

fn reaction_of(answer: Answer) -> Reaction {
    match answer {
        Answer::Log => Reaction::Log,
        Answer::Deny => Reaction::Deny,
        Answer::Stop => Reaction::Stop,
        Answer::Ask => Reaction::Ask,
    }
}

/// What the section says, over what is in force without it.
fn warden(text: &str, table: &WardenTable) -> anyhow::Result<Warden> {
    let mut warden = Warden::DEFAULT;
    if let Some(stop_after) = &table.stop_after {
        let (line, _) = position(text, stop_after.span().start);
        let (number, most) = (*stop_after.get_ref(), Warden::MOST);
        anyhow::ensure!(
            number <= most,
            "line {line}: stop_after is {number}; it can be 1 to {most}, or 0 for never"
        );
        warden.stop_after = number;
    }
    warden.within_seconds = table.within_seconds.unwrap_or(warden.within_seconds);
    if let Some(choice) = table.heki_configure {
        warden.heki_configure = choice == Choice::Allow;
    }
    Ok(warden)
}

/// Line and column, from 1, of a byte of `text`.
fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse("").unwrap(), PolicyFile::default());
    }

    #[test]
    fn presets_are_a_beginning() {
        assert_eq!(parse("preset = 'standard'").unwrap(), PolicyFile::default());
        let audit = parse("preset = 'audit'\n[reactions]\nmsr = 'stop'").unwrap().policy;
        for kind in ViolationKind::ALL {
            let stops = kind == ViolationKind::Msr;
            assert_eq!(audit.reaction(kind), if stops { Reaction::Stop } else { Reaction::Log });
        }
        assert_eq!((audit.modules, audit.patching), (Modules::Unauthenticated, Patching::ALL));
        let strict = parse("preset = 'strict'").unwrap().policy;
        assert_eq!(strict.modules, Modules::Deny);
        let tracing = Patching { ftrace: false, kprobes: false, livepatch: false, ..Patching::ALL };
        assert_eq!((strict.patching, strict.jit), (tracing, false));
        assert_eq!(strict.reactions, Policy::default().reactions);
        let text = "preset = 'strict'\nmodules = 'unauthenticated'\n\
                    jit = 'allow'\n\
                    [patching]\nftrace = 'allow'\njump_label = 'deny'";
        let mixed = parse(text).unwrap().policy;
        assert_eq!(mixed.modules, Modules::Unauthenticated);
        let patching = Patching { ftrace: true, jump_label: false, ..tracing };
        assert_eq!((mixed.patching, mixed.jit), (patching, true));
    }

    #[test]
    fn what_is_allowed_in_vain_is_pointed_out() {
        let says = |text| parse(text).unwrap().to_toml().matches("denied all the same").count();
        assert_eq!(says("modules = 'deny'"), 4);
        assert_eq!(says("[patching]\nftrace = 'deny'"), 1);
        assert_eq!((says("preset = 'strict'"), says("")), (0, 0));
        assert_eq!(says("supervisor_exec = 'off'\n[kexec]\nkernels = ['a']"), 1);
    }

    #[test]
    fn the_views_have_two_names() {
        let off = parse("user_kernel_view = 'off'").unwrap().policy;
        assert_eq!(off.supervisor_exec, SupervisorExec::Off);
        assert!(parse("user_kernel_view = 'off'\nsupervisor_exec = 'off'").is_err());
    }

    #[test]
    fn what_the_kernel_is_told_is_shown() {
        let shown = parse("jit = 'deny'").unwrap().to_toml();
        assert!(
            shown.contains("# sysctl.kernel.kexec_load_disabled=1 sysctl.net.core."),
            "{shown}"
        );
    }

    #[test]
    fn a_default_reaction_is_overridden_by_name() {
        let policy = parse("[reactions]\nmsr = 'log'\ndefault = 'stop'\n").unwrap().policy;
        assert_eq!(policy.reactions[ViolationKind::Msr as usize], Reaction::Log);
        assert_eq!(policy.reactions[ViolationKind::Patch as usize], Reaction::Stop);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, line, word) in [
            ("\nannounced = true", "line 2", "announced"),
            ("supervisor_exec = 'maybe'", "line 1", "maybe"),
            ("modules = 3", "line 1", "modules"),
            ("preset = 'lax'", "line 1", "lax"),
            ("[patching]\nftrace = true", "line 2", "ftrace"),
            ("[patching]\nuprobes = 'allow'", "line 2", "uprobes"),
            ("jit = 'interpret'", "line 1", "interpret"),
            ("platform = 'mine'", "line 1", "mine"),
            ("tables = 'allow'", "line 1", "allow"),
            ("[reactions]\n\nwrite-txt = 'log'", "line 3, column 1", "write-txt"),
            ("[reactions]\nmsr = 'panic'", "line 2", "panic"),
            ("[warden]\n\nstop_after = 33", "line 3", "1 to 32"),
            ("[warden]\nwithin_seconds = -1", "line 2", "within_seconds"),
            ("[warden]\nheki_configure = true", "line 2", "heki_configure"),
            ("[warden]\nforgive = 1", "line 2", "forgive"),
            ("[kexec]\nkernels = 'a'", "line 2", "kernels"),
            ("[kexec]\nkernels = [\n'a', 'b', 'c', 'd',\n'e']", "line 4", "more than 4"),
        ] {
            let message = format!("{:#}", parse(text).unwrap_err());
            assert!(message.contains(line) && message.contains(word), "{message}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            views: bool, modules: bool, announce: bool, patching: [bool; 5], jit: bool,
            heki_exec in 0_usize..3,
            reactions in prop::array::uniform(0..Reaction::ALL.len()),
            stop_after in 0..=Warden::MOST, within_seconds in 0..=u32::MAX, heki_configure: bool,
            kernels in prop::collection::vec("[ -~]{1,9}", 0..=4),
            known: bool, tables in 0_usize..3,
        ) {
            let policy = Policy {
                supervisor_exec: if views { SupervisorExec::Views } else { SupervisorExec::Off },
                modules: if modules { Modules::Unauthenticated } else { Modules::Deny },
                announce,
                patching: Patching {
                    jump_label: patching[0],
                    static_call: patching[1],
                    ftrace: patching[2],
                    kprobes: patching[3],
                    livepatch: patching[4],
                },
                jit,
                kexec: u8::try_from(kernels.len()).unwrap(),
                heki_exec: HekiExec::ALL[heki_exec],
                platform: if known { Platform::Known } else { Platform::Any },
                tables: Tables::ALL[tables],
                reactions: reactions.map(|number| Reaction::ALL[number]),
                warden: Warden { stop_after, within_seconds, heki_configure },
            };
            let kernels = kernels.into_iter().map(PathBuf::from).collect();
            let file = PolicyFile { policy, kernels };
            prop_assert_eq!(parse(&file.to_toml()).unwrap(), file);
        }
    }
}
