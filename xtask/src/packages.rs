//! Debian packages: what is needed, what is missing, and how it gets here.
//!
//! Tools are installed. Kernels are only unpacked under `target/`, since installing one would
//! change what this machine boots.

use crate::apt::{Apt, as_root};
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
    /// The folder that holds what its packages would put into `/`.
    pub root: PathBuf,
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
    let mut names = needed(flavours)?;
    if get && !missing(&names).is_empty() {
        // Lists that are older than the last update of the kernel name packages that are gone: the
        // names are those of the new lists. Without a mirror the old ones must do.
        if step("update the package lists", || Apt::own().update()).is_ok() {
            names = needed(flavours)?;
        }
    }
    install(&names, get)?;
    flavours.iter().map(|flavour| kernel(&Apt::own(), *flavour)).collect()
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
    let tests = crate::fuzz::PACKAGES.iter().chain(crate::userland::PACKAGES).chain(BROWSER);
    for package in crate::bochs::PACKAGES.iter().chain(tests) {
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
        let image = image_package(&Apt::own(), *flavour)?;
        needed.push(image.replace("linux-image-", "linux-headers-"));
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

/// The package that holds the newest kernel of a flavour, such as
/// `linux-image-6.1.0-56-cloud-amd64`.
fn image_package(apt: &Apt, flavour: Flavour) -> anyhow::Result<String> {
    let newest = || {
        let depends = apt.depends(flavour.metapackage())?;
        image_in(&depends).with_context(|| format!("apt knows no {}", flavour.metapackage()))
    };
    newest().or_else(|_| {
        step("update the package lists", || apt.update())?;
        newest()
    })
}

fn image_in(depends: &[String]) -> Option<String> {
    let mut images = depends.iter().filter(|name| {
        let release = name.strip_prefix("linux-image-").unwrap_or_default();
        release.starts_with(|first: char| first.is_ascii_digit())
    });
    images.next().cloned()
}

/// Fetches and unpacks the newest kernel of a flavour that `apt` knows, unless it is there.
///
/// # Errors
/// There is none, or it cannot be had.
pub fn kernel(apt: &Apt, flavour: Flavour) -> anyhow::Result<Kernel> {
    let package = image_package(apt, flavour)?;
    let Some(release) = package.strip_prefix("linux-image-") else { bail!("{package}: no kernel") };
    let root = guest_folder("kernels")?.join(&package);
    // Newer packages leave the image and the modules to others of the same release.
    let parts = apt.depends(&package)?.into_iter().filter(|name| {
        name.starts_with("linux-") && name.ends_with(&format!("-{release}")) && *name != package
    });
    let packages: Vec<String> = std::iter::once(package.clone()).chain(parts).collect();
    if !root.is_dir() {
        step(&format!("fetch {package}"), || apt.unpack(&packages, &root))?;
    }
    let places = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
    let image = places.iter().map(|place| root.join(place)).find(|image| image.is_file());
    let image = image.with_context(|| format!("{} holds no kernel", packages.join(", ")))?;
    Ok(Kernel { release: release.to_owned(), image, root })
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
        let image = |depends: &[&str]| {
            let depends: Vec<String> = depends.iter().map(|name| (*name).to_owned()).collect();
            image_in(&depends)
        };
        let found = image(&["linux-base-amd64", "linux-image-6.1.0-56-cloud-amd64"]);
        assert_eq!(found.as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(image(&["linux-image-cloud"]), None);
        assert_eq!(image(&[]), None);
    }
}
