//! What the hypervisor's test build does on request: it reads, writes and jumps where the caller
//! says, as a bug in the hypervisor might be made to. It shows what such a bug can reach. The normal
//! build knows none of this.

/// Number in RAX; the request is in RBX, its argument in RCX, the answer in RAX.
pub const PLANTED: u64 = 0x5256_4c4e_00ff_0000;
/// Answer: there was a page fault, or the request is not possible.
pub const REFUSED: u64 = u64::MAX;
/// What [`Request::Write`] writes.
pub const WRITTEN: u64 = 0x7261_7665_6c69_6e21;
/// Where the hypervisor's direct map is.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Where every CPU's 512 windows are, and then 512 places for frames that are being zeroed.
pub const WINDOWS: u64 = 0xffff_8080_0000_0000;

/// The requests, by their numbers in RBX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Request {
    /// Reads 8 bytes at an address, and answers them.
    Read = 0,
    /// Writes 8 bytes at an address.
    Write = 1,
    /// Calls an address.
    Jump = 2,
    /// Has the direct map cover the 2 MiB around a guest-physical address, executable too: a
    /// hypervisor without protection.
    Cover = 3,
    /// Undoes `Cover`.
    Uncover = 4,
    /// Opens a window on a guest frame, by its number, and holds it until `Release`; then reads
    /// through it, by its address, and answers what was there.
    Hold = 5,
    /// Reads at an address, then waits for `Release`, reads there again, and answers that.
    Watch = 6,
    /// The address that a CPU holds or watches; 0 if none does.
    Held = 7,
    /// Lets that CPU go on.
    Release = 8,
    /// Takes memory of the pool for a [`Kind`] of owner, and answers the number of its first frame.
    Take = 9,
    /// Gives back what `Take` took for a [`Kind`] of owner.
    GiveBack = 10,
    /// Has all that was given back zeroed, and brought back into the direct map.
    Tidy = 11,
    /// 1: CPUs say that they have flushed without doing so. 0: ends that.
    Deaf = 12,
    /// The direct map's leaves: of 2 MiB in bits 0 to 15, of 4 KiB in bits 16 to 31, splits since the
    /// start in bits 32 to 47, collapses in bits 48 to 63.
    Leaves = 13,
}

/// Owners for [`Request::Take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    /// The hypervisor.
    Hv = 0,
    /// A task.
    Task = 1,
    /// A secret of a task, of 2 MiB.
    Secret = 2,
}

impl Request {
    /// Every request, in the order of its number.
    pub const ALL: [Self; 14] = [
        Self::Read,
        Self::Write,
        Self::Jump,
        Self::Cover,
        Self::Uncover,
        Self::Hold,
        Self::Watch,
        Self::Held,
        Self::Release,
        Self::Take,
        Self::GiveBack,
        Self::Tidy,
        Self::Deaf,
        Self::Leaves,
    ];

    /// The request with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|request| *request as u64 == number)
    }
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        [Self::Hv, Self::Task, Self::Secret].into_iter().find(|kind| *kind as u64 == number)
    }
}
