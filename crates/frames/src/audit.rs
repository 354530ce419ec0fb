//! The audit: judges every leaf of every page table in the machine by the five rules of memory.
//!
//! 1. A frame has one owner: no table reaches a frame of another, nor one that has no owner; and no
//!    frame belongs to a task that has ended.
//! 2. The hypervisor's tables map its own frames only. A frame of a VM or a task is reached through
//!    a window, which executes nothing.
//! 3. Leaves are counted by size, so that it shows whether the large ones come back.
//! 4. A secret is in the table of its task and nowhere else, and is no code.
//! 5. No page of the hypervisor's tables, or of a task's, is writable and executable.
//!
//! Whoever has the tables hands in their leaves. What the frames are, [`Uses`] knows from elsewhere:
//! from the owners' records and not from the tables.

mod finding;
#[cfg(test)]
mod tests;
mod uses;

use addr::{FrameRange, HostPhysical};

pub use finding::{Broken, Finding};
pub use uses::{Machine, Region, Use, Uses};

/// Whose table a leaf is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// The hypervisor's, windows left out.
    Hv,
    /// The windows of a CPU, by number.
    Window(u32),
    /// A task's, by number. Its leaves that are for the supervisor only are judged as the
    /// hypervisor's.
    Task(u32),
    /// Any of the second-stage tables of a VM, by number.
    SecondStage(u32),
}

impl Space {
    /// Kinds of tables.
    const KINDS: usize = 4;

    const fn kind(self) -> usize {
        match self {
            Self::Hv => 0,
            Self::Window(_) => 1,
            Self::Task(_) => 2,
            Self::SecondStage(_) => 3,
        }
    }
}

/// A leaf, or a run of leaves alike, of whatever format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditedLeaf {
    /// The first page, virtual or guest-physical, by its number.
    pub page: u64,
    /// The frames that it maps.
    pub frames: FrameRange<HostPhysical>,
    /// Frames in each leaf of the run: 1, 512 or 512².
    pub size: u64,
    /// They can be written.
    pub write: bool,
    /// They can be executed.
    pub execute: bool,
    /// They can be reached at CPL 3. Says nothing in a second stage.
    pub user: bool,
}

/// Judges leaves, counts them, and keeps the first that breaks a rule.
#[derive(Debug)]
pub struct Audit<'a, U: ?Sized> {
    uses: &'a U,
    leaves: [[u64; 3]; Space::KINDS],
    runs: u64,
    first: Option<Finding>,
}

impl<'a, U: Uses + ?Sized> Audit<'a, U> {
    /// An audit of tables that map frames of these uses.
    pub const fn new(uses: &'a U) -> Self {
        Self { uses, leaves: [[0; 3]; Space::KINDS], runs: 0, first: None }
    }

    /// Judges a leaf, or a run of them.
    pub fn leaf(&mut self, space: Space, leaf: AuditedLeaf) {
        self.runs += 1;
        let size = usize::from(leaf.size > 1) + usize::from(leaf.size > addr::FRAMES_PER_2M);
        self.leaves[space.kind()][size] += leaf.frames.count().div_ceil(leaf.size.max(1));
        if self.first.is_none() {
            self.first = self.judge(space, leaf).err();
        }
    }

    /// Judges the owners of frames by the tasks that there are.
    pub fn owners(&mut self, frames: FrameRange<HostPhysical>, is_there: impl Fn(u32) -> bool) {
        let mut rest = frames;
        while !rest.is_empty() && self.first.is_none() {
            let (used, count) = self.uses.run(rest);
            let left = match used {
                Use::Task(task) => !is_there(task),
                Use::Secret(secret) => !self.uses.task_of(secret).is_some_and(&is_there),
                _ => false,
            };
            if left {
                self.first = Some(Finding::Left { frame: rest.start, used });
            }
            rest.start = rest.start.plus(count.clamp(1, rest.count()));
        }
    }

    /// Runs of leaves judged so far.
    pub const fn runs(&self) -> u64 {
        self.runs
    }

    /// Leaves of 4 KiB, 2 MiB and 1 GiB in all tables of the kind of `space`, its number apart.
    pub const fn leaves(&self, space: Space) -> [u64; 3] {
        self.leaves[space.kind()]
    }

    /// What came out.
    ///
    /// # Errors
    /// The first finding.
    pub fn outcome(&self) -> Result<(), Finding> {
        self.first.map_or(Ok(()), Err)
    }

    fn judge(&self, space: Space, leaf: AuditedLeaf) -> Result<(), Finding> {
        let mut start = leaf.frames.start;
        while start < leaf.frames.end {
            let rest = FrameRange::new(start, leaf.frames.end);
            let (used, count) = self.uses.run(rest);
            if let Some(broken) = self.broken(space, leaf, used) {
                let page = leaf.page.wrapping_add(start.raw() - leaf.frames.start.raw());
                return Err(Finding::Leaf { space, page, frame: start, broken });
            }
            start = start.plus(count.clamp(1, rest.count()));
        }
        Ok(())
    }

    /// The rule that a leaf on a frame of this use breaks.
    fn broken(&self, space: Space, leaf: AuditedLeaf, used: Use) -> Option<Broken> {
        let AuditedLeaf { write, execute, user, .. } = leaf;
        let is_own = !matches!(space, Space::SecondStage(_));
        let is_supervisors = matches!(space, Space::Hv | Space::Window(_));
        match self.most(space, user, used) {
            None => Some(Broken::Foreign(used)),
            _ if is_own && write && execute => Some(Broken::WritableCode),
            _ if is_supervisors && user => Some(Broken::UserAccess),
            Some(most) if write && !most.write || execute && !most.execute => {
                Some(Broken::Excess(used))
            }
            Some(_) => None,
        }
    }

    /// What a table's leaves may allow on a frame of this use; `None` if there must be no leaf.
    fn most(&self, space: Space, user: bool, used: Use) -> Option<Most> {
        match (space, used) {
            (Space::Hv, Use::Hv | Use::Published | Use::Runtime | Use::Registers) => {
                Some(Most::ALL)
            }
            (Space::Window(_), Use::Vm(_) | Use::Task(_)) => Some(Most::DATA),
            (Space::Task(_), _) if !user => self.most(Space::Hv, user, used),
            (Space::Task(task), Use::Task(owner)) if task == owner => Some(Most::ALL),
            (Space::Task(task), Use::Secret(secret)) if self.uses.task_of(secret) == Some(task) => {
                Some(Most::DATA)
            }
            (Space::Task(_), Use::Runtime) => Some(Most::CODE),
            (Space::SecondStage(vm), Use::Vm(owner) | Use::VmSecret(owner)) if vm == owner => {
                Some(Most::ALL)
            }
            (Space::SecondStage(_), Use::Device | Use::Registers) => Some(Most::ALL),
            (Space::SecondStage(_), Use::Published) => Some(Most::READ),
            _ => None,
        }
    }
}

/// The most that a leaf may allow, besides reading.
#[derive(Clone, Copy)]
struct Most {
    write: bool,
    execute: bool,
}

impl Most {
    const ALL: Self = Self { write: true, execute: true };
    const DATA: Self = Self { write: true, execute: false };
    const CODE: Self = Self { write: false, execute: true };
    const READ: Self = Self { write: false, execute: false };
}
