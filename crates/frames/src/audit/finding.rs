//! What an audit finds, in words for people.

use super::{Space, Use};
use addr::{Hfn, PAGE_SHIFT};
use core::fmt;

/// A leaf that breaks a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{space} at {address:#x}, frame {frame:?}: {broken}",
    address = page << PAGE_SHIFT
)]
pub struct Finding {
    /// Whose table it is in.
    pub space: Space,
    /// The page, virtual or guest-physical, by its number.
    pub page: u64,
    /// The frame that it leads to.
    pub frame: Hfn,
    /// What is wrong with it.
    pub broken: Broken,
}

/// How a leaf breaks a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The table must not map frames of this use.
    #[error("it reaches {0}")]
    Foreign(Use),
    /// It may map frames of this use, but not with these rights.
    #[error("it may do more than it must with {0}")]
    Excess(Use),
    /// The page is writable and executable.
    #[error("it is writable and executable")]
    WritableCode,
    /// A task could reach a page of the hypervisor's.
    #[error("it is open to tasks")]
    UserAccess,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hv => f.write_str("the hypervisor's table"),
            Self::Window(cpu) => write!(f, "a window of CPU {cpu}"),
            Self::Task(task) => write!(f, "the table of task {task}"),
            Self::SecondStage(vm) => write!(f, "the second stage of VM {vm}"),
        }
    }
}
