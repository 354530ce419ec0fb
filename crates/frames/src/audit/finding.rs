//! What an audit finds, in words for people.

use super::{Space, Use};
use addr::{Hfn, PAGE_SHIFT};
use core::fmt;

/// What breaks a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// A leaf.
    #[error("{space} at {address:#x}, frame {frame:?}: {broken}", address = page << PAGE_SHIFT)]
    Leaf {
        /// Whose table it is in.
        space: Space,
        /// The page, virtual or guest-physical, by its number.
        page: u64,
        /// The frame that it leads to.
        frame: Hfn,
        /// What is wrong with it.
        broken: Broken,
    },
    /// A frame whose owner has ended.
    #[error("frame {frame:?} is still {used}, which has ended")]
    Left {
        /// The frame.
        frame: Hfn,
        /// What it was there for.
        used: Use,
    },
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
