//! The folder that one run works in: sockets, boot modules, configuration.

use anyhow::{Context, ensure};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A folder for one run; gone when this is dropped.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("ravelin-").tempdir()?;
        let name = folder.path().to_string_lossy();
        ensure!(
            name.len() < 80 && !name.contains([' ', ',']),
            "cannot work in {name}: set TMPDIR to a short path without spaces and commas"
        );
        Ok(Self(folder))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes `target` known as `name`.
    pub fn link(&self, target: &Path, name: &str) -> anyhow::Result<PathBuf> {
        let target = target.canonicalize().with_context(|| target.display().to_string())?;
        symlink(target, self.path(name))?;
        Ok(self.path(name))
    }

    /// Makes a file of `bytes`.
    pub fn write(&self, bytes: &[u8], name: &str) -> anyhow::Result<PathBuf> {
        std::fs::write(self.path(name), bytes)?;
        Ok(self.path(name))
    }
}
