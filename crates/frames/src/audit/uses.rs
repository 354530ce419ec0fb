//! What each frame of the machine is there for, as the records of owners say.

use crate::block::Block;
use crate::rules::Rules;
use crate::secrets::{SecretSlot, Secrets};
use crate::word::Word;
use crate::{FrameState, Owner, Ownership};
use addr::{FrameRange, HostPhysical};
use core::fmt;

/// What a frame is there for, as far as it decides which tables may map it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// The hypervisor's; or in no use, in a block that its direct map has as a whole.
    Hv,
    /// The hypervisor's, which every VM may read.
    Published,
    /// The hypervisor's, which every task may read and execute.
    Runtime,
    /// Registers of a device that the hypervisor uses too.
    Registers,
    /// A device's, or nothing at all.
    Device,
    /// A VM's, by number.
    Vm(u32),
    /// A VM's, by number, which has made it secret.
    VmSecret(u32),
    /// A task's, by number.
    Task(u32),
    /// A task's secret, by the number of its handle.
    Secret(u32),
    /// A device's buffer, which no table maps.
    Buffer,
    /// In no use, free or in quarantine, and outside of the direct map.
    Vacant,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hv => f.write_str("the hypervisor's"),
            Self::Published => f.write_str("what the hypervisor lets every VM read"),
            Self::Runtime => f.write_str("what the hypervisor lets every task read and execute"),
            Self::Registers | Self::Device => f.write_str("a device's"),
            Self::Vm(vm) => write!(f, "VM {vm}'s"),
            Self::VmSecret(vm) => write!(f, "a secret of VM {vm}"),
            Self::Task(task) => write!(f, "task {task}'s"),
            Self::Secret(secret) => write!(f, "secret {secret:#x}"),
            Self::Buffer => f.write_str("a device's buffer"),
            Self::Vacant => f.write_str("nobody's"),
        }
    }
}

/// Knows the use of every frame of the machine.
pub trait Uses {
    /// The use of the first of `frames`, which are not none, and how many frames from it on, at
    /// least 1, are known to be of the same.
    fn run(&self, frames: FrameRange<HostPhysical>) -> (Use, u64);

    /// The task whose secret this is, by the number of its handle.
    fn task_of(&self, secret: u32) -> Option<u32>;
}

/// Frames of one use.
pub type Region = (FrameRange<HostPhysical>, Use);

/// The fixed parts of the machine. Where they overlap the first counts; outside of them all is
/// [`Use::Device`].
impl Uses for [Region] {
    fn run(&self, frames: FrameRange<HostPhysical>) -> (Use, u64) {
        let start = frames.start;
        let regions = self.iter().filter(|(region, _)| !region.is_empty());
        let found = regions.clone().find(|(region, _)| region.contains(start));
        let later = regions.map(|(region, _)| region.start).filter(|other| *other > start);
        let end = found.map_or(frames.end, |(region, _)| region.end);
        let end = later.chain([frames.end]).fold(end, core::cmp::Ord::min);
        let used = found.map_or(Use::Device, |(_, used)| *used);
        (used, FrameRange::new(start, end).count().max(1))
    }

    fn task_of(&self, _secret: u32) -> Option<u32> {
        None
    }
}

/// A machine whose pool has owners: fixed parts, which come first, and the pool.
#[derive(Debug)]
pub struct Machine<'a, W, B, S, R> {
    /// The fixed parts.
    pub regions: &'a [Region],
    /// The pool.
    pub pool: &'a Ownership<W, B, R>,
    /// Secrets in the pool.
    pub secrets: &'a Secrets<S>,
}

impl<W, B, S, R: Rules> Uses for Machine<'_, W, B, S, R>
where
    W: AsRef<[Word]> + AsMut<[Word]>,
    B: AsRef<[Block]> + AsMut<[Block]>,
    S: AsRef<[SecretSlot]> + AsMut<[SecretSlot]>,
{
    fn run(&self, frames: FrameRange<HostPhysical>) -> (Use, u64) {
        let (used, count) = self.regions.run(frames);
        if self.regions.iter().any(|(region, _)| region.contains(frames.start)) {
            return (used, count);
        }
        let here = FrameRange::with_count(frames.start, count.min(frames.count()));
        let pool = self.pool.range();
        if let Some(used) = self.pool.used(here.start) {
            let rest = FrameRange::new(here.start.plus(1), here.end.min(pool.end));
            let alike = rest.iter().take_while(|frame| self.pool.used(*frame) == Some(used));
            return (used, 1 + alike.count() as u64);
        }
        let end = if here.start < pool.start { here.end.min(pool.start) } else { here.end };
        (used, FrameRange::new(here.start, end).count())
    }

    fn task_of(&self, secret: u32) -> Option<u32> {
        self.secrets.task_of(secret)
    }
}

impl<W, B, R: Rules> Ownership<W, B, R>
where
    W: AsRef<[Word]> + AsMut<[Word]>,
    B: AsRef<[Block]> + AsMut<[Block]>,
{
    /// What a frame of the pool is there for; `None` if it is none of the pool's.
    pub fn used(&self, frame: addr::Hfn) -> Option<Use> {
        Some(match self.state(frame)? {
            FrameState::Owned(Owner::Hv) => Use::Hv,
            FrameState::Owned(Owner::Task(task)) => Use::Task(task),
            FrameState::Owned(Owner::Vm(vm)) => Use::Vm(vm),
            FrameState::Owned(Owner::Secret(secret)) => Use::Secret(secret),
            FrameState::Owned(Owner::Device) => Use::Buffer,
            FrameState::Free | FrameState::Quarantined if self.is_at_home(frame) => Use::Hv,
            FrameState::Free | FrameState::Quarantined => Use::Vacant,
        })
    }
}
