//! Physical memory beyond the hypervisor's own, byte by byte through windows. Used at boot, when
//! the memory is nobody's yet, and for the guest's memory after its addresses were checked.

use super::window::Windows;
use addr::{Hpa, PAGE_BYTES, PAGE_SIZE};

/// The memory that `windows` can be opened on.
#[derive(Clone, Copy)]
pub struct Physical<'a> {
    windows: &'a Windows,
}

/// A frame could not be reached: it is the hypervisor's own.
#[derive(Clone, Copy, Debug)]
pub struct Unreachable;

impl<'a> Physical<'a> {
    /// Access through the calling CPU's windows.
    pub const fn new(windows: &'a Windows) -> Self {
        Self { windows }
    }

    /// Copies bytes out.
    pub fn read(self, start: Hpa, buffer: &mut [u8]) -> Result<(), Unreachable> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = start.plus(done as u64);
            done += self.windows.open(at.frame()).ok_or(Unreachable)?.read(at.offset(), rest);
        }
        Ok(())
    }

    /// Copies bytes in.
    pub fn write(self, start: Hpa, bytes: &[u8]) -> Result<(), Unreachable> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let at = start.plus(done as u64);
            done += self.windows.open(at.frame()).ok_or(Unreachable)?.write(at.offset(), rest);
        }
        Ok(())
    }

    /// Zeroes whole frames.
    pub fn clear(self, start: Hpa, length: u64) -> Result<(), Unreachable> {
        for offset in (0..length).step_by(PAGE_BYTES) {
            self.windows.open(start.plus(offset).frame()).ok_or(Unreachable)?.clear();
        }
        Ok(())
    }

    /// Copies `length` bytes from one place to another that does not overlap it.
    pub fn copy(self, from: Hpa, to: Hpa, length: u64) -> Result<(), Unreachable> {
        let mut done = 0;
        while done < length {
            let source = from.plus(done);
            let window = self.windows.open(source.frame()).ok_or(Unreachable)?;
            // The rest of the source's frame, which may take two of the target's.
            let end = length.min(done + PAGE_SIZE - source.offset() as u64);
            while done < end {
                let (source, target) = (from.plus(done), to.plus(done));
                let target_window = self.windows.open(target.frame()).ok_or(Unreachable)?;
                let most = usize::try_from(end - done).unwrap_or(usize::MAX);
                done +=
                    window.copy_to(source.offset(), &target_window, target.offset(), most) as u64;
            }
        }
        Ok(())
    }

    /// Shows `length` bytes to `watch`, piece by piece, where they are: while no guest runs, when
    /// nobody else writes to them.
    pub fn scan(
        self,
        from: Hpa,
        length: u64,
        mut watch: impl FnMut(&[u8]),
    ) -> Result<(), Unreachable> {
        let mut done = 0;
        while done < length {
            let at = from.plus(done);
            let window = self.windows.open(at.frame()).ok_or(Unreachable)?;
            // SAFETY: as this function asks for, nothing writes to the frame while it is shown.
            let bytes = unsafe { window.bytes() };
            let rest = bytes.get(at.offset()..).unwrap_or_default();
            let most = usize::try_from(length - done).unwrap_or(usize::MAX);
            let piece = rest.get(..most).unwrap_or(rest);
            watch(piece);
            done += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads a little-endian `u32`.
    pub fn read_u32(self, at: Hpa) -> Result<u32, Unreachable> {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Writes a little-endian `u64`.
    pub fn write_u64(self, at: Hpa, value: u64) -> Result<(), Unreachable> {
        self.write(at, &value.to_le_bytes())
    }
}
