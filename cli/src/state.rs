//! Protection states: put together from the records that carry their pieces, and read from files.

use abi::event::StatePart;
use anyhow::Context;
use protection::record::{MOST_BYTES, Saved};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Puts a state together.
#[derive(Default)]
pub struct Parts {
    bytes: Vec<u8>,
}

impl Parts {
    /// Takes the next piece; the whole state if it was the last and none was lost.
    pub fn push(&mut self, part: StatePart, bytes: &[u8]) -> Option<Vec<u8>> {
        if part.offset == 0 {
            self.bytes.clear();
        }
        let follows = usize::try_from(part.offset) == Ok(self.bytes.len());
        if !follows || self.bytes.len() + bytes.len() > MOST_BYTES {
            // What comes until the next start follows nothing.
            self.bytes.clear();
            return None;
        }
        self.bytes.extend_from_slice(bytes);
        let whole = (part.last == 1).then(|| std::mem::take(&mut self.bytes))?;
        Saved::parse(&whole).is_ok().then_some(whole)
    }
}

/// The bytes of the file at `path`; [`parse`] reads them.
///
/// # Errors
/// It cannot be read, or is longer than any state.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read the state {}", path.display());
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).with_context(cannot)?;
    file.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes).with_context(cannot)?;
    Ok(bytes)
}

/// Checks a state that was read from `path`.
///
/// # Errors
/// It is damaged, or no state.
pub fn parse<'a>(path: &Path, bytes: &'a [u8]) -> anyhow::Result<Saved<'a>> {
    Saved::parse(bytes).with_context(|| {
        format!("{} cannot be used: save it anew with `ravelin run --state`", path.display())
    })
}

/// The path to a state that can be given to a machine.
///
/// # Errors
/// As for [`parse`].
pub fn check(path: &Path) -> anyhow::Result<PathBuf> {
    parse(path, &read(path)?)?;
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::MAX_CPUS;
    use abi::hypercall::SupervisorMode;
    use abi::policy::Policy;
    use integrity::pins::ControlPin;
    use integrity::state::{Page, PageState};
    use protection::Settings;
    use protection::record::save;

    fn state() -> Vec<u8> {
        let free = ControlPin { must_be_one: 0, must_be_zero: 0 };
        let settings = Settings {
            policy: Policy::default(),
            stage: 0,
            separation: SupervisorMode::Views,
            execute_only: false,
            frames: 7,
            kernel_digest: 0,
            kernel: None,
            requested: [free; 2],
            vcpus: [None; MAX_CPUS],
        };
        let mut bytes = Vec::new();
        save(&settings, |_| Page::new(PageState::Data), |it| bytes.extend_from_slice(it)).unwrap();
        bytes
    }

    fn push(parts: &mut Parts, offset: usize, bytes: &[u8], last: bool) -> Option<Vec<u8>> {
        let offset = u32::try_from(offset).unwrap();
        parts.push(StatePart { vm: 0, offset, last: last.into() }, bytes)
    }

    #[test]
    fn pieces_make_a_state_unless_one_is_missing() {
        let bytes = state();
        let (first, rest) = bytes.split_at(50);
        let (second, third) = rest.split_at(60);
        let mut parts = Parts::default();
        for _ in 0..2 {
            assert_eq!(push(&mut parts, 0, first, false), None);
            assert_eq!(push(&mut parts, 50, second, false), None);
            assert_eq!(push(&mut parts, 110, third, true), Some(bytes.clone()));
        }
        push(&mut parts, 0, first, false);
        assert_eq!(push(&mut parts, 110, third, true), None);
        push(&mut parts, 0, first, false);
        push(&mut parts, 50, second, false);
        // The start again, and then the end of another state.
        push(&mut parts, 0, first, false);
        assert_eq!(push(&mut parts, 50, third, true), None);
        assert_eq!(push(&mut parts, 0, &bytes, true), Some(bytes.clone()));
        let long = vec![0; MOST_BYTES + 1];
        assert_eq!(push(&mut parts, 0, &long, true), None);
    }
}
