//! How user execution and supervisor execution are told apart, and what follows for rights.
//!
//! Decided once, for every vendor: if an entry of the second stage can allow them separately, one
//! table serves both and nothing exits at a system call; else there are two tables, switched by
//! the execute fault; and the policy may want neither.

use crate::vendor::{SplitExecution, Vendor};
use abi::hypercall::SupervisorMode;
use abi::policy::SupervisorExec;
use integrity::Rights;
use integrity::state::{Page, View};

/// The way in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Separation {
    /// Not at all.
    None,
    /// By two tables, the kernel's view and the user's.
    Views,
    /// By the entries of one table.
    Table(SplitExecution),
}

impl Separation {
    /// What the policy wants, in the best way that the CPU has.
    pub fn choose<V: Vendor>(wanted: SupervisorExec) -> Self {
        match wanted {
            SupervisorExec::Off => Self::None,
            SupervisorExec::Views => V::splits_execution().map_or(Self::Views, Self::Table),
        }
    }

    /// The mode as the guest and people are told it.
    pub const fn mode(self) -> SupervisorMode {
        match self {
            Self::None => SupervisorMode::Off,
            Self::Views => SupervisorMode::Views,
            Self::Table(SplitExecution::ByAddress) => SupervisorMode::Mbec,
            Self::Table(SplitExecution::ByPrivilege) => SupervisorMode::Gmet,
        }
    }

    /// How the entries of one table tell the modes apart; `None` where they do not.
    pub const fn split(self) -> Option<SplitExecution> {
        match self {
            Self::Table(split) => Some(split),
            Self::None | Self::Views => None,
        }
    }

    /// Whether user code and the kernel are told apart by the kind of an address, so that each can
    /// execute what the other cannot.
    pub const fn is_by_address(self) -> bool {
        matches!(self, Self::Table(SplitExecution::ByAddress))
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

    /// By the page's state and what is withheld, after the lock.
    pub const fn of(page: Page, separation: Separation) -> Self {
        match separation {
            Separation::None => Self::both(page.allows(View::Single)),
            Separation::Views | Separation::Table(_) => {
                Self { kernel: page.allows(View::Kernel), user: page.allows(View::User) }
            }
        }
    }

    /// On RAM while a kernel begins to boot, when nothing was granted.
    pub const fn at_first(separation: Separation) -> Self {
        let read_write = Rights::READ.union(Rights::WRITE);
        let kernel = if separation.is_by_address() { Rights::all() } else { read_write };
        Self::before_the_lock(kernel, separation)
    }

    /// Before the lock the table at hand is the kernel's. User code executes nothing where that can
    /// be expressed; elsewhere nothing but what the kernel was granted.
    pub const fn before_the_lock(kernel: Rights, separation: Separation) -> Self {
        match separation {
            Separation::Table(SplitExecution::ByAddress) => {
                Self { kernel, user: kernel.difference(Rights::EXECUTE) }
            }
            Separation::Table(SplitExecution::ByPrivilege)
            | Separation::None
            | Separation::Views => Self::both(kernel),
        }
    }
}
