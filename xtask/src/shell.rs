//! Running other programs quietly: what they print is shown only when they fail.

use anyhow::{Context, bail, ensure};
use ravelin::machine::interrupted;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

/// A command in the root of the workspace.
pub fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    // Messages of apt and dpkg are read by us.
    command.args(arguments).current_dir(workspace()).env("LC_ALL", "C.UTF-8");
    command
}

/// Runs a command and gives what it printed.
///
/// # Errors
/// It cannot be run or fails; the message holds the end of what it printed.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    ensure!(!interrupted()?.load(Ordering::Relaxed), "interrupted");
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {shown}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let all = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
        let lines: Vec<&str> = all.lines().collect();
        let end = lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n");
        bail!("{shown} ended with {}:\n{end}", output.status);
    }
    Ok(text)
}

/// Whether a command can be run and succeeds.
pub fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    named.map_or_else(|| workspace().join("target"), |target| workspace().join(target))
}

/// A folder for what the guests are made of and what they say; made if it is missing.
///
/// # Errors
/// It cannot be made.
pub fn guest_folder(name: &str) -> anyhow::Result<PathBuf> {
    let folder = target().join("guest").join(name);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(folder)
}
