//! Debian packages: what is needed, what is missing, and how it gets here.
//!
//! Tools are installed. Kernels are only unpacked under `target/`, since installing one would
//! change what this machine boots.

use crate::progress::step;
use crate::shell::{command, guest_folder, run, succeeds};
use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};

/// A kernel that Debian offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// For virtual machines.
    Cloud,
    /// For any machine.
    Generic,
}

impl Flavour {
    /// The package that depends on the newest kernel of this flavour.
    const fn metapackage(self) -> &'static str {
        match self {
            Flavour::Cloud => "linux-image-cloud-amd64",
            Flavour::Generic => "linux-image-amd64",
        }
    }
}

/// A kernel, unpacked.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As `uname -r` says, for example `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
}

const TOOLS: [&str; 10] = [
    "qemu-system-x86",
    "gcc",
    "libc6-dev",
    "make",
    "grub-common",
    "grub-pc-bin",
    "grub-efi-amd64-bin",
    "xorriso",
    "mtools",
    "ovmf",
];

/// What shows the pages that `cargo xtask test --full` looks at.
pub const BROWSER: &[&str] = &["chromium"];

/// Installs the tools and fetches kernels of the given flavours.
///
/// # Errors
/// This is no Debian system, or something is missing and cannot be installed.
pub fn prepare(flavours: &[Flavour], get: bool) -> anyhow::Result<Vec<Kernel>> {
    install(&needed(flavours)?, get)?;
    flavours.iter().map(|flavour| kernel(*flavour)).collect()
}

/// Installs those of these packages that are missing, or only says which, unless `get`.
///
/// # Errors
/// One is missing and was not installed.
pub fn install<T: AsRef<str>>(needed: &[T], get: bool) -> anyhow::Result<()> {
    let needed: Vec<String> = needed.iter().map(|name| name.as_ref().to_owned()).collect();
    let missing = missing(&needed);
    if !missing.is_empty() {
        anstream::eprintln!("Debian packages that are missing: {}", missing.join(" "));
        ensure!(
            get,
            "nothing was installed (--no-install); run: apt-get install {}",
            missing.join(" ")
        );
        step("install packages", || install_all(&missing))?;
    }
    Ok(())
}

/// Fetches `file`, which lies beside `package` in the archive that apt has it from, to `to`.
///
/// # Errors
/// The archive has no such file any more, or one with another digest.
pub fn fetch(package: &str, file: &str, sha256: &str, to: &Path) -> anyhow::Result<()> {
    let place = || run(&mut command("apt-get", &["--print-uris", "download", package]));
    let printed = place().or_else(|_| as_root(&["update", "-q"]).and_then(|()| place()))?;
    let folder = archive_folder(&printed)
        .with_context(|| format!("apt does not say where it has {package} from: {printed}"))?;
    let address = format!("{folder}/{}", file.replace('+', "%2b"));
    let mut download = command("/usr/lib/apt/apt-helper", &["download-file", &address]);
    run(download.arg(to).arg(format!("SHA256:{sha256}"))).map(drop)
}

/// The folder of a package's address in `'ADDRESS' FILE SIZE DIGEST`.
fn archive_folder(printed: &str) -> Option<&str> {
    let line = printed.lines().find(|line| line.starts_with('\''))?;
    let address = line.split('\'').nth(1)?;
    address.rsplit_once('/').map(|(folder, _)| folder)
}

/// Every package that is needed, and whether it is there.
///
/// # Errors
/// This is no Debian system, or its package lists cannot be read.
pub fn list() -> anyhow::Result<Vec<(String, bool)>> {
    let mut needed = needed(&[Flavour::Cloud, Flavour::Generic])?;
    for package in crate::bochs::PACKAGES.iter().chain(crate::fuzz::PACKAGES).chain(BROWSER) {
        if !needed.iter().any(|other| other == package) {
            needed.push((*package).to_owned());
        }
    }
    let missing = missing(&needed);
    let state = |name: String| {
        let there = !missing.contains(&name);
        (name, there)
    };
    Ok(needed.into_iter().map(state).collect())
}

fn needed(flavours: &[Flavour]) -> anyhow::Result<Vec<String>> {
    ensure!(
        succeeds(&mut command("apt-get", &["--version"])),
        "there is no apt-get here. This command needs a Debian 12 or 13 system: it fetches \
         Debian's kernel and its headers. `ravelin run` works anywhere with QEMU 7.2 or later"
    );
    let mut needed: Vec<String> = TOOLS.iter().map(|tool| (*tool).to_owned()).collect();
    for flavour in flavours {
        // The probes are a module, so they need the headers of the kernel that loads them.
        needed.push(image_package(*flavour)?.replace("linux-image-", "linux-headers-"));
    }
    Ok(needed)
}

fn missing(needed: &[String]) -> Vec<String> {
    let installed = |name: &str| {
        let query = run(&mut command("dpkg-query", &["-W", "-f", "${db:Status-Status}", name]));
        query.is_ok_and(|status| status.trim() == "installed")
    };
    needed.iter().filter(|name| !installed(name)).cloned().collect()
}

fn install_all(packages: &[String]) -> anyhow::Result<()> {
    let install = |packages: &[String]| {
        let mut arguments = vec!["install", "-y", "-q", "--no-install-recommends"];
        arguments.extend(packages.iter().map(String::as_str));
        as_root(&arguments)
    };
    // The lists may be so old that they name packages which are gone.
    install(packages).or_else(|_| as_root(&["update", "-q"]).and_then(|()| install(packages)))
}

/// `apt-get` with the rights to change this system.
fn as_root(arguments: &[&str]) -> anyhow::Result<()> {
    let root = run(&mut command("id", &["-u"]))?.trim() == "0";
    let mut apt = if root { command("apt-get", &[]) } else { command("sudo", &["-n", "apt-get"]) };
    let apt = apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    let by_hand = || format!("root must do this: apt-get {}", arguments.join(" "));
    run(apt).map(drop).with_context(by_hand)
}

/// The package that holds the newest kernel of a flavour, such as
/// `linux-image-6.1.0-56-cloud-amd64`.
fn image_package(flavour: Flavour) -> anyhow::Result<String> {
    let newest = || {
        let depends = run(&mut command("apt-cache", &["depends", flavour.metapackage()]))?;
        image_in(&depends).with_context(|| format!("apt knows no {}", flavour.metapackage()))
    };
    newest().or_else(|_| {
        step("update the package lists", || as_root(&["update", "-q"]))?;
        newest()
    })
}

fn image_in(depends: &str) -> Option<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let mut images = names.filter(|name| {
        let release = name.strip_prefix("linux-image-").unwrap_or_default();
        release.starts_with(|first: char| first.is_ascii_digit())
    });
    images.next().map(str::to_owned)
}

/// Fetches and unpacks a kernel unless it is there.
fn kernel(flavour: Flavour) -> anyhow::Result<Kernel> {
    let package = image_package(flavour)?;
    let Some(release) = package.strip_prefix("linux-image-") else { bail!("{package}: no kernel") };
    let kernels = guest_folder("kernels")?;
    let folder = kernels.join(&package);
    let image = folder.join("boot").join(format!("vmlinuz-{release}"));
    if !image.is_file() {
        step(&format!("fetch {package}"), || {
            // Unpacked elsewhere and then renamed, so that what is there is whole.
            let work = guest_folder("download")?;
            std::fs::remove_dir_all(&work)?;
            std::fs::create_dir_all(&work)?;
            let mut download = command("apt-get", &["download", "-q", &package]);
            let again = || as_root(&["update", "-q"]);
            let download = download.current_dir(&work);
            run(download).or_else(|_| again().and_then(|()| run(download)))?;
            let files: Vec<_> = std::fs::read_dir(&work)?.collect::<Result<_, _>>()?;
            let [archive] = files.as_slice() else { bail!("apt-get download left no one file") };
            let unpacked = work.join("unpacked");
            run(command("dpkg-deb", &["-x"]).arg(archive.path()).arg(&unpacked))?;
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::rename(&unpacked, &folder)?;
            std::fs::remove_dir_all(&work)?;
            Ok(())
        })?;
    }
    ensure!(image.is_file(), "{package} holds no {}", image.display());
    Ok(Kernel { release: release.to_owned(), image })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_package_is_found() {
        let text = "N: a notice\n'http://mirror/pool/main/b/bochs/bochs_2.7%2bdfsg-4_amd64.deb' \
                    bochs_2.7+dfsg-4_amd64.deb 1661184 SHA256:50a3\n";
        assert_eq!(archive_folder(text), Some("http://mirror/pool/main/b/bochs"));
        assert_eq!(archive_folder("E: Unable to locate package bochs\n"), None);
    }

    #[test]
    fn the_newest_image_is_what_the_metapackage_depends_on() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(image_in(text).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(image_in("linux-image-amd64\n  Depends: linux-image-cloud\n"), None);
        assert_eq!(image_in("N: Unable to locate package\n"), None);
    }
}
