//! Manifests of kernels seen before.
//!
//! An entry is named by the kernel's digest and length and by the layout's version. It is used
//! only if it passes every check of [`Summary::from_manifest`], belongs to the kernel, and is younger
//! than this program (which may make better ones by now); anything else is made again. Entries
//! are written under another name and then renamed, so that nobody reads half of one.

use abi::manifest::VERSION;
use anyhow::Context;
use linux_image::Summary;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The manifest of `kernel`, from the cache if possible. That the cache cannot be written is no
/// error.
///
/// # Errors
/// The file is no kernel that a manifest can be made of.
pub fn manifest(kernel: &[u8]) -> anyhow::Result<Vec<u8>> {
    match directory() {
        Some(directory) => manifest_in(&directory, kernel, make),
        None => make(kernel),
    }
}

/// Makes the manifest of `kernel`.
///
/// # Errors
/// The file is no kernel that a manifest can be made of.
pub fn make(kernel: &[u8]) -> anyhow::Result<Vec<u8>> {
    Ok(linux_image::manifest(kernel)?)
}

fn directory() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("ravelin"))
}

fn manifest_in(
    directory: &Path,
    kernel: &[u8],
    make: impl FnOnce(&[u8]) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<Vec<u8>> {
    let digest = abi::digest(kernel);
    let path = directory.join(format!("{digest:016x}-{:x}.manifest-{VERSION}", kernel.len()));
    if let Some(bytes) = fresh(&path).and_then(|packed| linux_image::unpack(&packed).ok()?) {
        let known = Summary::from_manifest(&bytes).ok();
        let known = known.map(|summary| (summary.kernel_length, summary.kernel_digest));
        if known == Some((kernel.len() as u64, digest)) {
            return Ok(bytes);
        }
    }
    let bytes = make(kernel)?;
    // Without the cache the manifest is only slower to come by next time.
    let _ = write(directory, &path, &linux_image::pack(&bytes));
    Ok(bytes)
}

fn fresh(path: &Path) -> Option<Vec<u8>> {
    let written = std::fs::metadata(path).and_then(|entry| entry.modified()).ok()?;
    let program = std::env::current_exe().and_then(std::fs::metadata);
    let built = program.and_then(|program| program.modified()).ok()?;
    if written < built { None } else { std::fs::read(path).ok() }
}

fn write(directory: &Path, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)?;
    write_atomically(path, bytes)
}

/// Writes a file so that it is either whole or not there.
///
/// # Errors
/// The folder cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = || format!("cannot write {}", path.display());
    // As open a file as the umask allows, like any other that is written.
    let rights = Permissions::from_mode(0o666);
    let mut file =
        tempfile::Builder::new().permissions(rights).tempfile_in(folder).with_context(name)?;
    file.write_all(bytes).with_context(name)?;
    file.persist(path).with_context(name)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_damaged_entry_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let made = Cell::new(0);
        let make = |_: &[u8]| {
            made.set(made.get() + 1);
            Ok(b"no manifest, so no use as an entry".to_vec())
        };
        for _ in 0..2 {
            manifest_in(folder.path(), b"kernel", make).unwrap();
        }
        assert_eq!(made.get(), 2);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_cache_that_cannot_be_written_does_not_matter() {
        let make = |_: &[u8]| Ok(vec![1]);
        assert_eq!(manifest_in(Path::new("/proc/none"), b"kernel", make).unwrap(), [1]);
    }
}
