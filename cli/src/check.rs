//! Everything that can be wrong with a machine before it starts. Each message says what is wrong,
//! where, and what to do next.

use anyhow::{Context, bail, ensure};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A machine has at least this many bytes of memory.
pub const MIN_MEMORY: u64 = 256 << 20;

/// Reads a size such as `512M`, `6G` or `1024` (MiB).
///
/// # Errors
/// It is no number with one of these units, or less than [`MIN_MEMORY`].
pub fn memory(text: &str) -> anyhow::Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 =
        digits.parse().ok().context("a size is a whole number and a unit, as in 512M or 6G")?;
    let unit = match text.get(digits.len()..).unwrap_or_default().to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mib" => 1 << 20,
        "k" | "kb" | "kib" => 1 << 10,
        "g" | "gb" | "gib" => 1 << 30,
        unit => bail!("`{unit}` is no unit of memory; use M or G, as in 512M or 6G"),
    };
    let bytes = number.checked_mul(unit).context("that is more than a machine can have")?;
    ensure!(bytes >= MIN_MEMORY, "{text} is too little memory; a machine needs at least 256M");
    Ok(bytes)
}

/// Reads a number of CPUs.
///
/// # Errors
/// It is no number from 1 to [`abi::MAX_CPUS`].
pub fn cpus(text: &str) -> anyhow::Result<usize> {
    let cpus: usize = text.parse().ok().context("the number of CPUs is a whole number")?;
    let most = abi::MAX_CPUS;
    ensure!((1..=most).contains(&cpus), "Ravelin runs on 1 to {most} CPUs, not on {cpus}");
    Ok(cpus)
}

/// No file that is read whole is longer, in bytes: what a machine boots must fit below 4 GiB.
const FILE_LIMIT: u64 = 2 << 30;

/// Reads the file that was given as `role` (kernel, initrd, ...).
///
/// # Errors
/// It cannot be read, is empty, or is longer than 2 GiB.
pub fn read(role: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    read_at_most(FILE_LIMIT, role, path)
}

fn read_at_most(limit: u64, role: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read the {role} {}", path.display());
    let file = File::open(path).with_context(cannot)?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).with_context(cannot)?;
    ensure!(!bytes.is_empty(), "the {role} {} is empty", path.display());
    ensure!(
        bytes.len() as u64 <= limit,
        "the {role} {} is too long: {limit} bytes are the limit; is it the right file?",
        path.display()
    );
    Ok(bytes)
}

/// Whether `bytes` begin like a bzImage of the 64-bit boot protocol.
///
/// # Errors
/// They do not.
pub fn bzimage(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    ensure!(
        bytes.get(0x202..0x206) == Some(b"HdrS"),
        "{} is not a bzImage (no setup header at 0x202); give the file that is installed as \
         /boot/vmlinuz-...",
        path.display()
    );
    Ok(())
}

/// Finds a program in `PATH`.
///
/// # Errors
/// It is not installed; `package` is the Debian package that has it.
pub fn program(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not installed; on Debian: apt-get install {package}"))
}

/// The hypervisor image: `given`, or `RAVELIN_HYPERVISOR`, or `ravelin-hv` beside this program.
///
/// # Errors
/// None of them is a file.
pub fn hypervisor(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let named = given.map(Path::to_owned);
    let named = named.or_else(|| std::env::var_os("RAVELIN_HYPERVISOR").map(PathBuf::from));
    if let Some(path) = named {
        ensure!(path.is_file(), "there is no hypervisor at {}", path.display());
        return Ok(path);
    }
    let beside = std::env::current_exe()?.with_file_name("ravelin-hv");
    ensure!(
        beside.is_file(),
        "there is no hypervisor at {}; build it with `cargo build --release -p hv`, or name one \
         with --hypervisor",
        beside.display()
    );
    Ok(beside)
}

/// The warden's program or image: `given`, or `ravelin-warden` beside the hypervisor image.
///
/// # Errors
/// There is none.
pub fn warden(given: Option<&Path>, hypervisor: &Path) -> anyhow::Result<PathBuf> {
    let path = given.map_or_else(|| hypervisor.with_file_name("ravelin-warden"), Path::to_owned);
    ensure!(
        path.is_file(),
        "there is no warden at {}; build it with `cargo build --release -p warden`, name one with \
         --warden, or leave it out with --no-warden",
        path.display()
    );
    Ok(path)
}

/// The Bochs program: `given`, or `RAVELIN_BOCHS`, or the one that `cargo xtask bochs` builds in
/// the folder that this program was built in.
///
/// # Errors
/// None of them is a file.
pub fn bochs(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let named = given.map(Path::to_owned);
    let named = named.or_else(|| std::env::var_os("RAVELIN_BOCHS").map(PathBuf::from));
    let path = match named {
        Some(path) => path,
        None => {
            let own = std::env::current_exe()?;
            let target = own.parent().and_then(Path::parent).unwrap_or(Path::new("."));
            target.join("guest/bochs/bochs")
        }
    };
    ensure!(
        path.is_file(),
        "there is no Bochs at {}; build one with `cargo xtask bochs`, or name one of version 3.0 \
         or later with --bochs",
        path.display()
    );
    Ok(path)
}

/// Whether this machine can run virtual machines, and virtual machines inside them if `nested`.
///
/// # Errors
/// It cannot; the message says why.
pub fn kvm(nested: bool) -> anyhow::Result<()> {
    kvm_at(Path::new("/"), nested).context("--accel kvm cannot be used; leave it out to emulate")
}

fn kvm_at(root: &Path, nested: bool) -> anyhow::Result<()> {
    ensure!(root.join("dev/kvm").exists(), "there is no /dev/kvm: KVM is not loaded here");
    if !nested {
        return Ok(());
    }
    let cpuinfo = std::fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    ensure!(
        flags.split_whitespace().any(|flag| flag == "svm"),
        "this CPU has no SVM, which Ravelin needs in the machine it runs on"
    );
    let parameter = std::fs::read_to_string(root.join("sys/module/kvm_amd/parameters/nested"));
    ensure!(
        matches!(parameter.unwrap_or_default().trim(), "1" | "Y"),
        "nested virtualization is off; reload the module with `modprobe kvm_amd nested=1`"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(memory("512M").unwrap(), 512 << 20);
        assert_eq!(memory("6GiB").unwrap(), 6 << 30);
        assert_eq!(memory("1024").unwrap(), 1 << 30);
        for bad in ["", "M", "255M", "-1G", "1.5G", "12T", "99999999999999999999G", "99999999999G"]
        {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_are_read_up_to_their_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_at_most(5, "kernel", &path).unwrap(), b"12345");
        let error =
            |path: &Path, limit| read_at_most(limit, "kernel", path).unwrap_err().to_string();
        assert!(error(&path, 4).contains("4 bytes are the limit"));
        assert!(error(Path::new("/dev/zero"), 1 << 20).contains("too long"));
        assert!(error(Path::new("/dev/null"), 5).contains("empty"));
        assert!(error(folder.path(), 5).contains("cannot read the kernel"));
    }

    #[test]
    fn cpu_counts() {
        assert_eq!(cpus("16").unwrap(), 16);
        for bad in ["0", "17", "two", ""] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kvm_is_refused_with_the_reason() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let reason = || kvm_at(root.path(), true).unwrap_err().to_string();
        assert!(reason().contains("/dev/kvm"));
        write("dev/kvm", "");
        assert!(kvm_at(root.path(), false).is_ok());
        write("proc/cpuinfo", "flags\t\t: fpu vmx\n");
        assert!(reason().contains("SVM"));
        write("proc/cpuinfo", "flags\t\t: fpu svm\n");
        assert!(reason().contains("nested"));
        write("sys/module/kvm_amd/parameters/nested", "1\n");
        assert!(kvm_at(root.path(), true).is_ok());
    }
}
