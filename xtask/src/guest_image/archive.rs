//! The initial file system of a test guest, as an uncompressed cpio archive: it never leaves this
//! machine, and unpacking it would only blur what a boot costs.

use super::leave::leave;
use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Device number of the console (Linux, Documentation/admin-guide/devices.txt).
const CONSOLE: (u32, u32) = (5, 1);

/// An archive with `init` as its first program, a program `leave` that only ends, and, if any, the
/// module `probes` to load.
///
/// # Errors
/// A file cannot be read or is larger than 4 GiB.
pub fn initramfs(init: &Path, probes: Option<&Path>) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    for folder in ["dev", "proc", "sys", "tmp"] {
        let entry = entry(folder, 0o755, ModeFileType::Directory);
        append(&mut archive, entry, &[])?;
    }
    // The kernel gives init its standard streams from this node, before anything is mounted.
    let console = entry("dev/console", 0o600, ModeFileType::Char);
    append(&mut archive, console.rdev_major(CONSOLE.0).rdev_minor(CONSOLE.1), &[])?;
    append(&mut archive, entry("init", 0o755, ModeFileType::Regular), &read(init)?)?;
    append(&mut archive, entry("leave", 0o755, ModeFileType::Regular), &leave())?;
    if let Some(probes) = probes {
        let module = entry("ravelin_probes.ko", 0o644, ModeFileType::Regular);
        append(&mut archive, module, &read(probes)?)?;
    }
    Ok(trailer(archive)?)
}

/// An archive to put behind the first one: with it the kernel finds a module loader and runs it
/// while it still boots, long before init.
///
/// # Errors
/// The file cannot be read or is larger than 4 GiB.
pub fn module_loader(init: &Path) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    append(&mut archive, entry("sbin", 0o755, ModeFileType::Directory), &[])?;
    append(&mut archive, entry("sbin/modprobe", 0o755, ModeFileType::Regular), &read(init)?)?;
    Ok(trailer(archive)?)
}

/// An archive to put behind the first one: with it the guest has the `ravelin` command.
///
/// # Errors
/// The file cannot be read or is larger than 4 GiB.
pub fn command(ravelin: &Path) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    append(&mut archive, entry("ravelin", 0o755, ModeFileType::Regular), &read(ravelin)?)?;
    Ok(trailer(archive)?)
}

/// An archive to put behind the first one: with it the guest has the module `file` as `/NAME.ko`.
///
/// # Errors
/// The file cannot be read or is larger than 4 GiB.
pub fn module(name: &str, file: &Path) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    let entry = entry(&format!("{name}.ko"), 0o644, ModeFileType::Regular);
    append(&mut archive, entry, &read(file)?)?;
    Ok(trailer(archive)?)
}

/// An archive to put behind the first one: with it the guest has a kernel to start, and that one's
/// initial file system, with one more file `extra` in it.
///
/// # Errors
/// A file cannot be read or is larger than 4 GiB.
pub fn successor(kernel: &Path, initrd: &Path, extra: &str) -> Result<Vec<u8>> {
    let mut inner = Vec::new();
    append(&mut inner, entry(extra, 0o644, ModeFileType::Regular), &[])?;
    let inner = [read(initrd)?, trailer(inner)?].concat();
    let mut archive = Vec::new();
    append(&mut archive, entry("kexec", 0o755, ModeFileType::Directory), &[])?;
    for (name, bytes) in [("kexec/vmlinuz", read(kernel)?), ("kexec/initrd", inner)] {
        append(&mut archive, entry(name, 0o644, ModeFileType::Regular), &bytes)?;
    }
    Ok(trailer(archive)?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn entry(name: &str, mode: u32, kind: ModeFileType) -> Builder {
    Builder::new(name).mode(mode).set_mode_file_type(kind)
}

fn append(archive: &mut Vec<u8>, entry: Builder, content: &[u8]) -> Result<()> {
    let mut writer = entry.write(archive, u32::try_from(content.len())?);
    writer.write_all(content)?;
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::io::Read;

    #[test]
    fn the_archive_holds_what_was_put_in() {
        let folder = std::env::temp_dir().join(format!("guest-image-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (init, probes) = (folder.join("a"), folder.join("b"));
        fs::write(&init, b"program").unwrap();
        fs::write(&probes, b"module, of odd length").unwrap();
        let archive = initramfs(&init, Some(&probes)).unwrap();
        fs::remove_dir_all(&folder).unwrap();

        let mut rest = archive.as_slice();
        let mut found = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let device = (reader.entry().rdev_major(), reader.entry().rdev_minor());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            found.push((name, mode, device, content));
            rest = reader.finish().unwrap();
        }
        let expect = |name: &str, mode, device, content: &[u8]| {
            let wanted = (name.to_owned(), mode, device, content.to_vec());
            assert!(found.contains(&wanted), "{wanted:?} is not among {found:?}");
        };
        expect("dev", 0o040755, (0, 0), b"");
        expect("dev/console", 0o020600, CONSOLE, b"");
        expect("init", 0o100755, (0, 0), b"program");
        expect("ravelin_probes.ko", 0o100644, (0, 0), b"module, of odd length");
    }
}
