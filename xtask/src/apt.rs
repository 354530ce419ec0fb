//! Debian's archive: as this machine knows it, or another release of it from the same mirror.
//!
//! For another release apt gets lists of its own, in a folder under `target/`, so that nothing of
//! this machine changes. It checks them by Debian's keys, which this machine has, and every package
//! by the digests in them.

use crate::shell::{command, guest_folder, run};
use anyhow::{Context, ensure};
use std::path::Path;
use std::process::Command;

/// Debian's keys.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The release that is always under way, and has no updates for security.
pub const UNSTABLE: &str = "sid";

/// apt, with some release's lists of packages.
pub struct Apt {
    /// What each of its programs is told first.
    options: Vec<String>,
}

impl Apt {
    /// With this machine's own lists.
    pub const fn own() -> Self {
        Self { options: Vec::new() }
    }

    /// With the lists of the release `suite`, as new as they can be had.
    ///
    /// # Errors
    /// This machine has its packages from no mirror of Debian's, or that lacks the release.
    pub fn of(suite: &str) -> anyhow::Result<Self> {
        let folder = guest_folder("apt")?.join(suite);
        for part in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(folder.join(part))?;
        }
        std::fs::write(folder.join("sources.list"), sources(suite)?.join("\n") + "\n")?;
        // What is installed here is of no importance there.
        std::fs::write(folder.join("status"), "")?;
        let place = |key: &str, part: &str| format!("{key}={}", folder.join(part).display());
        let options = [
            place("Dir::Etc::SourceList", "sources.list"),
            "Dir::Etc::SourceParts=-".to_owned(),
            "Dir::Etc::Preferences=-".to_owned(),
            "Dir::Etc::PreferencesParts=-".to_owned(),
            place("Dir::State::Lists", "lists"),
            place("Dir::State::Status", "status"),
            place("Dir::Cache", "cache"),
            "Acquire::Languages=none".to_owned(),
        ];
        let options = options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect();
        let apt = Self { options };
        apt.update()?;
        Ok(apt)
    }

    fn program(&self, name: &str, arguments: &[&str]) -> Command {
        let mut program = command(name, &[]);
        program.args(&self.options).args(arguments);
        program
    }

    /// Fetches the lists anew.
    ///
    /// # Errors
    /// They cannot be had.
    pub fn update(&self) -> anyhow::Result<()> {
        if self.options.is_empty() {
            as_root(&["update", "-q"])
        } else {
            run(&mut self.program("apt-get", &["update", "-q"])).map(drop)
        }
    }

    /// The packages that `package` depends on.
    ///
    /// # Errors
    /// There is no such package.
    pub fn depends(&self, package: &str) -> anyhow::Result<Vec<String>> {
        let text = run(&mut self.program("apt-cache", &["depends", package]))?;
        let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(str::to_owned).collect())
    }

    /// Fetches packages and unpacks them into `folder`, which must not be there.
    ///
    /// # Errors
    /// They cannot be had, or not be unpacked.
    pub fn unpack(&self, packages: &[String], folder: &Path) -> anyhow::Result<()> {
        // Unpacked elsewhere and then renamed, so that what is there is whole.
        let work = guest_folder("download")?;
        std::fs::remove_dir_all(&work)?;
        std::fs::create_dir_all(&work)?;
        let mut download = self.program("apt-get", &["download", "-q"]);
        let download = download.args(packages).current_dir(&work);
        run(download).or_else(|_| self.update().and_then(|()| run(download)))?;
        let files: Vec<_> = std::fs::read_dir(&work)?.collect::<Result<_, _>>()?;
        ensure!(files.len() == packages.len(), "apt-get download left {} files", files.len());
        let unpacked = work.join("unpacked");
        for file in files {
            run(command("dpkg-deb", &["-x"]).arg(file.path()).arg(&unpacked))?;
        }
        std::fs::rename(&unpacked, folder)?;
        std::fs::remove_dir_all(&work)?;
        Ok(())
    }
}

/// The lines of `sources.list` for a release, with the mirrors that this machine uses; updates for
/// security are among them where it knows of any and the release has them.
///
/// # Errors
/// It uses no mirror of Debian's.
pub fn sources(suite: &str) -> anyhow::Result<Vec<String>> {
    let main = match mirror("Debian")? {
        Some(main) => main,
        None => {
            Apt::own().update()?;
            mirror("Debian")?.context("apt has packages from no mirror of Debian's")?
        }
    };
    let line = |mirror: &str, suite: &str| format!("deb [signed-by={KEYS}] {mirror} {suite} main");
    let mut lines = vec![line(&main, suite)];
    if let Some(mirror) = mirror("Debian-Security")?.filter(|_| suite != UNSTABLE) {
        lines.push(line(&mirror, &format!("{suite}-security")));
    }
    Ok(lines)
}

/// Where this machine has packages with this label from.
fn mirror(label: &str) -> anyhow::Result<Option<String>> {
    let targets = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let label = format!("Label: {label}");
    let text = run(command("apt-get", &targets).args(["Origin: Debian", &label]))?;
    Ok(text.lines().next().map(str::to_owned))
}

/// A program with the rights to change this system.
///
/// # Errors
/// It cannot be found out who we are.
pub fn with_root(program: &str) -> anyhow::Result<Command> {
    let root = run(&mut command("id", &["-u"]))?.trim() == "0";
    Ok(if root { command(program, &[]) } else { command("sudo", &["-n", program]) })
}

/// `apt-get` with the rights to change this system.
///
/// # Errors
/// We have not got them, or it fails.
pub fn as_root(arguments: &[&str]) -> anyhow::Result<()> {
    let mut apt = with_root("apt-get")?;
    let apt = apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    let by_hand = || format!("root must do this: apt-get {}", arguments.join(" "));
    run(apt).map(drop).with_context(by_hand)
}
