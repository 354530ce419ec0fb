//! How user execution and supervisor execution are told apart, and what follows for rights.
//!
//! Decided once, for every vendor: if an entry of the second stage can allow them separately, one
//! table serves both and nothing exits at a system call; else there are two tables, switched by
//! the execute fault; and the policy may want neither.

use crate::vendor::Vendor;
use abi::policy::SupervisorExec;
use integrity::Rights;
use integrity::state::{PageState, View, second_stage};

/// The way in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Separation {
    /// Not at all.
    None,
    /// By two tables, the kernel's view and the user's.
    Views,
    /// By two rights in each entry of one table.
    Table,
}

impl Separation {
    /// What the policy wants, in the best way that the CPU has.
    pub fn choose<V: Vendor>(wanted: SupervisorExec) -> Self {
        match wanted {
            SupervisorExec::Off => Self::None,
            SupervisorExec::Views if V::splits_execution() => Self::Table,
            SupervisorExec::Views => Self::Views,
        }
    }

    /// Name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "off",
            Self::Views => "views",
            Self::Table => "mbec",
        }
    }
}

/// What kernel and user code may do on a page. Both are the same where they are not told apart.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// The kernel's rights.
    pub kernel: Rights,
    /// User code's rights.
    pub user: Rights,
}

impl Allowed {
    /// The same for both.
    pub const fn both(rights: Rights) -> Self {
        Self { kernel: rights, user: rights }
    }

    /// By the page's state, after the lock.
    pub const fn of(state: PageState, separation: Separation) -> Self {
        match separation {
            Separation::None => Self::both(second_stage(state, View::Single)),
            Separation::Views | Separation::Table => Self {
                kernel: second_stage(state, View::Kernel),
                user: second_stage(state, View::User),
            },
        }
    }

    /// Before the lock the table at hand is the kernel's, and where it is the user's too, user code
    /// executes nothing.
    pub const fn before_the_lock(kernel: Rights, separation: Separation) -> Self {
        match separation {
            Separation::Table => Self { kernel, user: kernel.difference(Rights::EXECUTE) },
            Separation::None | Separation::Views => Self::both(kernel),
        }
    }
}
