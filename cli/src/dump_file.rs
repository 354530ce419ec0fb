//! The dump as a file on this host. It is read at positions and never mapped: a file that shrinks
//! meanwhile is an error and not a signal.

use anyhow::Context;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An open dump.
pub struct DumpFile {
    file: File,
    length: u64,
}

impl DumpFile {
    /// Opens it.
    ///
    /// # Errors
    /// It is no file that can be read.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot read the dump {}", path.display());
        let file = File::open(path).with_context(cannot)?;
        let length = file.metadata().with_context(cannot)?.len();
        Ok(Self { file, length })
    }
}

impl dump::Source for DumpFile {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        self.file.read_exact_at(buffer, offset).ok()
    }
}
