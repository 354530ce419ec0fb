//! Blocks of frames: which frames leave the direct map is decided by block, so that its leaves
//! stay large.
//!
//! A block at *home* is mapped by one leaf and holds the hypervisor's frames; all of it is in the
//! direct map. A block set *aside* holds frames of all other owners. The only frames of it that
//! the direct map maps are the hypervisor's, *strays*, which are there only because it was short
//! of memory.

/// Blocks linked into each of the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// At home, all free.
    Whole,
    /// At home, some frames free.
    Home,
    /// Aside, all free.
    Spare,
    /// Aside, some frames free, the others strays.
    Strays,
    /// Aside, all strays.
    Lost,
    /// Aside, some frames free, some owned or in quarantine.
    Aside,
    /// No frame free, nor any reason to look for it.
    Full,
}

/// Number of kinds.
pub(crate) const KINDS: usize = 7;

/// What is known of a block; 40 bytes for its 512 frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// Set aside.
    pub(crate) aside: bool,
    /// At home, and nobody has used its free frames since the start: they are neither zeroed nor in
    /// a list.
    pub(crate) fresh: bool,
    /// Free frames.
    pub(crate) free: u16,
    /// Frames of the hypervisor's.
    pub(crate) hv: u16,
    /// First free frame of the block, by its number in the pool.
    pub(crate) first: Option<u32>,
    /// Neighbours in the list of its kind.
    pub(crate) next: Option<u32>,
    pub(crate) previous: Option<u32>,
    /// Request whose service makes all CPUs forget that the direct map had all of it.
    pub(crate) forgotten: u64,
}

impl Block {
    /// A block for [`Ownership::new`](crate::Ownership::new) to fill in.
    pub const EMPTY: Self = Self {
        aside: false,
        fresh: false,
        free: 0,
        hv: 0,
        first: None,
        next: None,
        previous: None,
        forgotten: 0,
    };

    /// The list that a block of `size` frames belongs in.
    pub(crate) fn kind(&self, size: u16) -> Kind {
        match (self.aside, self.free) {
            (false, free) if free == size => Kind::Whole,
            (false, 1..) => Kind::Home,
            (true, free) if free == size => Kind::Spare,
            (true, 0) if self.hv == size => Kind::Lost,
            (true, free) if free + self.hv == size => Kind::Strays,
            (true, 1..) => Kind::Aside,
            (_, 0) => Kind::Full,
        }
    }
}

/// The blocks of a pool, each in the list of its kind, in lent storage.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Blocks<B> {
    blocks: B,
    lists: [List; KINDS],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct List {
    first: Option<u32>,
    last: Option<u32>,
    count: u32,
}

impl<B: AsRef<[Block]> + AsMut<[Block]>> Blocks<B> {
    /// Blocks that are in no list yet.
    pub fn new(blocks: B) -> Self {
        Self { blocks, lists: [List::default(); KINDS] }
    }

    pub fn get(&self, block: u32) -> &Block {
        &self.blocks.as_ref()[block as usize]
    }

    pub fn get_mut(&mut self, block: u32) -> &mut Block {
        &mut self.blocks.as_mut()[block as usize]
    }

    /// First block of a kind.
    pub fn first(&self, kind: Kind) -> Option<u32> {
        self.lists[kind as usize].first
    }

    /// Number of blocks of a kind.
    pub fn count(&self, kind: Kind) -> u32 {
        self.lists[kind as usize].count
    }

    /// The first blocks of a kind.
    pub fn iter(&self, kind: Kind) -> impl Iterator<Item = u32> {
        core::iter::successors(self.first(kind), |block| self.get(*block).next)
    }

    /// Takes a block, about to change, out of its list.
    pub fn unlink(&mut self, block: u32, kind: Kind) {
        let Block { next, previous, .. } = *self.get(block);
        match previous {
            Some(previous) => self.get_mut(previous).next = next,
            None => self.lists[kind as usize].first = next,
        }
        match next {
            Some(next) => self.get_mut(next).previous = previous,
            None => self.lists[kind as usize].last = previous,
        }
        self.lists[kind as usize].count -= 1;
    }

    /// Puts a block, after a change, into the list of its kind: at the front, or the back.
    pub fn link(&mut self, block: u32, kind: Kind, front: bool) {
        let list = self.lists[kind as usize];
        let (previous, next) = if front { (None, list.first) } else { (list.last, None) };
        let entry = self.get_mut(block);
        (entry.previous, entry.next) = (previous, next);
        match previous {
            Some(previous) => self.get_mut(previous).next = Some(block),
            None => self.lists[kind as usize].first = Some(block),
        }
        match next {
            Some(next) => self.get_mut(next).previous = Some(block),
            None => self.lists[kind as usize].last = Some(block),
        }
        self.lists[kind as usize].count += 1;
    }
}
