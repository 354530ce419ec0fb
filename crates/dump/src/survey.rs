//! The audit: what every frame can be used for through all its mappings together, and what of that
//! should not be.

pub use crate::aliases::Alias;
use crate::aliases::{alias_of, join};
use crate::counts::{Counts, Storage};
use crate::memory::MemoryMap;
use crate::names::VSYSCALL;
use crate::root::Root;
use crate::users::Users;
use crate::{Dump, DumpError, Source};
use addr::{FrameRange, Gfn, GuestPhysical, Gva};
use alloc::vec;
use alloc::vec::Vec;
use integrity::Rights;
use paging::Level;
use paging::guest::{GuestLeaf, Visited};

/// Most findings that are listed.
const MOST_FINDINGS: usize = 1 << 12;
/// Most mappings that are listed, over all findings.
const MOST_ALIASES: usize = 1 << 14;
/// Most other mappings that are listed.
const MOST_LEAVES: usize = 1 << 10;
/// Most cells of the map of memory.
pub const MOST_CELLS: u64 = 1 << 13;

/// What a frame is used for, in the order in which it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// The kernel half does not map it.
    Unmapped,
    /// Data that the kernel can write.
    Data,
    /// Data that the kernel can only read.
    ReadOnly,
    /// A process has it mapped.
    User,
    /// The kernel can execute it and not write it.
    Code,
    /// A process has it mapped, and the kernel can execute it.
    UserCode,
    /// The kernel can write and execute it.
    Conflict,
}

impl Use {
    /// Number of uses.
    pub const COUNT: usize = 7;
    /// All of them.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Unmapped,
        Self::Data,
        Self::ReadOnly,
        Self::User,
        Self::Code,
        Self::UserCode,
        Self::Conflict,
    ];

    /// The use of a frame by what the kernel half and what processes can do with it.
    pub fn of(kernel: Rights, user: Rights) -> Self {
        let execute = kernel.contains(Rights::EXECUTE);
        let write = kernel.contains(Rights::WRITE);
        match (write, execute, user.is_empty()) {
            (true, true, _) => Self::Conflict,
            (_, true, false) => Self::UserCode,
            (_, true, true) => Self::Code,
            (_, false, false) => Self::User,
            (true, false, true) => Self::Data,
            (false, false, true) if kernel.is_empty() => Self::Unmapped,
            (false, false, true) => Self::ReadOnly,
        }
    }

    /// Whether it should not be.
    pub const fn is_finding(self) -> bool {
        matches!(self, Self::UserCode | Self::Conflict)
    }
}

/// Consecutive frames with something that should not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The frames.
    pub frames: FrameRange<GuestPhysical>,
    /// What can be done with each through all mappings of the kernel half.
    pub kernel: Rights,
    /// What processes can do with each.
    pub user: Rights,
    /// The mappings of the kernel half, in the order of addresses.
    pub aliases: Vec<Alias>,
}

impl Finding {
    /// Which of the two kinds of finding it is.
    pub fn usage(&self) -> Use {
        Use::of(self.kernel, self.user)
    }

    /// Whether a mapping by itself can be written and executed; otherwise it takes two.
    pub fn is_single(&self) -> bool {
        self.aliases.iter().any(|alias| alias.rights.contains(WX))
    }
}

const WX: Rights = Rights::WRITE.union(Rights::EXECUTE);

/// A cell of the map of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its first address, in units of [`Survey::cell_frames`].
    pub number: u64,
    /// Number of frames in it that the dump has, by [`Use`].
    pub uses: [u64; Use::COUNT],
}

/// The smallest cells, in frames, of which a machine has few enough.
fn cell_frames(memory: &MemoryMap) -> u64 {
    let count = |size: u64| {
        let mut cells = 0;
        let mut next = 0;
        for piece in memory.pieces() {
            let end = piece.frames.end.raw().div_ceil(size);
            cells += end - next.max(piece.frames.start.raw() / size).min(end);
            next = end;
        }
        cells
    };
    (0..=40).map(|shift| 1 << shift).find(|size| count(*size) <= MOST_CELLS).unwrap_or(1 << 40)
}

/// What an audit found.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Page tables of the kernel half, and links to such as are not in the dump.
    pub visited: Visited,
    /// Leaves of the kernel half of 4 KiB, 2 MiB, 1 GiB.
    pub leaves: [u64; 3],
    /// Frames by the kernel's rights (3 bits) and by what processes can do: nothing, read, write.
    pub frames: [[u64; 3]; 8],
    /// Frames that some mapping of the kernel half lets be executed, and another one only read or
    /// written: code that can be reached as data.
    pub code_as_data: u64,
    /// What should not be, in the order of physical addresses.
    pub findings: Vec<Finding>,
    /// Frames in all findings, listed or not.
    pub conflicting: u64,
    /// Frames that a process has mapped and the kernel can execute (and not write).
    pub user_code: u64,
    /// Whether something was not listed because there is too much of it.
    pub cut_off: bool,
    /// Mappings of the kernel half that are open to processes, but for the vsyscall page.
    pub open: Vec<Alias>,
    /// Pages in all of them.
    pub open_pages: u64,
    /// Mappings of what is not in the dump, such as devices, that can be written and executed.
    pub outside: Vec<Alias>,
    /// Pages in all of them.
    pub outside_pages: u64,
    /// The processes' side.
    pub users: Users,
    /// The map of memory, in order; holes have no cells.
    pub cells: Vec<Cell>,
    /// Frames that a cell covers, a power of two.
    pub cell_frames: u64,
}

impl Survey {
    /// Whether there is nothing that should not be.
    pub fn is_clean(&self) -> bool {
        self.conflicting + self.user_code + self.open_pages + self.outside_pages == 0
    }

    /// Number of frames that the kernel half maps executable.
    pub fn code(&self) -> u64 {
        let rows = (0..).zip(&self.frames);
        let executable = |bits| Rights::from_bits_truncate(bits).contains(Rights::EXECUTE);
        rows.filter(|(bits, _)| executable(*bits)).flat_map(|(_, counts)| counts).sum()
    }

    /// Number of frames that processes have mapped, and how many of these the kernel half maps too.
    pub fn of_processes(&self) -> (u64, u64) {
        let shared = |[_, read, write]: &[u64; 3]| read + write;
        let all = self.frames.iter().map(shared).sum();
        (all, self.frames.iter().skip(1).map(shared).sum())
    }

    /// Number of frames of this use.
    pub fn count(&self, usage: Use) -> u64 {
        let place = Use::ALL.iter().position(|other| *other == usage);
        let of = |cell: &Cell| place.and_then(|place| cell.uses.get(place).copied());
        self.cells.iter().filter_map(of).sum()
    }
}

impl<S: Source> Dump<S> {
    /// Audits the kernel half under `root`. `progress` gets the number of bytes searched, up to the
    /// size of the machine's memory.
    ///
    /// # Errors
    /// `Tables`, `Memory`.
    pub fn survey(&self, root: &Root, progress: impl FnMut(u64)) -> Result<Survey, DumpError> {
        let storage = || Storage::new(&self.memory);
        let (mut kernel, mut data, mut user) = (storage()?, storage()?, storage()?);
        let mut kernel = Counts::new(&self.memory, &mut kernel);
        let mut data = Counts::new(&self.memory, &mut data);
        let mut user = Counts::new(&self.memory, &mut user);
        let mut survey = self.survey_kernel(root, &mut kernel, &mut data)?;
        survey.users = self.visit_users(root, progress, |leaf| {
            let alias = alias_of(&leaf);
            user.add(alias.frames(), alias.rights);
        });
        self.classify(&mut survey, &kernel, &data, &user);
        if !survey.findings.is_empty() {
            self.list_aliases(root, &mut survey)?;
        }
        Ok(survey)
    }

    /// Counts all mappings of the kernel half, and by themselves those that do not let execute.
    fn survey_kernel(
        &self,
        root: &Root,
        kernel: &mut Counts<'_>,
        data: &mut Counts<'_>,
    ) -> Result<Survey, DumpError> {
        let mut survey = Survey {
            visited: Visited::default(),
            leaves: [0; 3],
            frames: [[0; 3]; 8],
            code_as_data: 0,
            findings: Vec::new(),
            conflicting: 0,
            user_code: 0,
            cut_off: false,
            open: Vec::new(),
            open_pages: 0,
            outside: Vec::new(),
            outside_pages: 0,
            users: Users::default(),
            cells: Vec::new(),
            cell_frames: 1,
        };
        let mut room = (MOST_LEAVES, MOST_LEAVES);
        let mut add = |leaf: GuestLeaf| {
            let alias = alias_of(&leaf);
            let [small, large, huge] = &mut survey.leaves;
            *match leaf.level {
                Level::Page4K => small,
                Level::Page2M => large,
                Level::Page1G => huge,
                Level::Top => return,
            } += 1;
            let inside = kernel.add(alias.frames(), alias.rights);
            if !alias.rights.contains(Rights::EXECUTE) {
                data.add(alias.frames(), alias.rights);
            }
            if alias.user && leaf.gva.raw() != VSYSCALL {
                survey.open_pages += alias.pages;
                survey.cut_off |= !join(&mut survey.open, alias, &mut room.0);
            }
            if !inside && alias.rights.contains(WX) {
                survey.outside_pages += alias.pages;
                survey.cut_off |= !join(&mut survey.outside, alias, &mut room.1);
            }
        };
        // One by one: part of a run may lead out of the dump.
        let visited = self.visit_kernel(root, Gva::new(0), |run| run.each().for_each(&mut add));
        survey.visited = visited.map_err(DumpError::Tables)?;
        Ok(survey)
    }

    /// Looks at every frame once.
    fn classify(
        &self,
        survey: &mut Survey,
        kernel: &Counts<'_>,
        data: &Counts<'_>,
        user: &Counts<'_>,
    ) {
        survey.cell_frames = cell_frames(&self.memory);
        for (number, piece) in self.memory.pieces().iter().enumerate() {
            for frame in piece.frames.iter() {
                let (kernel, user) = (kernel.rights(number, frame), user.rights(number, frame));
                let code = kernel.contains(Rights::EXECUTE);
                survey.code_as_data += u64::from(code && !data.rights(number, frame).is_empty());
                let usage = Use::of(kernel, user);
                survey.count_frame(frame, kernel, user, usage);
                if usage.is_finding() {
                    survey.note(frame, kernel, user);
                }
            }
        }
    }

    /// Finds the mappings of what was found.
    fn list_aliases(&self, root: &Root, survey: &mut Survey) -> Result<(), DumpError> {
        let mut room = MOST_ALIASES;
        let Survey { findings, cut_off, .. } = survey;
        let visited = self.visit_kernel(root, Gva::new(0), |leaf| {
            let alias = alias_of(&leaf);
            let range = alias.frames();
            let first = findings.partition_point(|finding| finding.frames.end <= range.start);
            for finding in findings.iter_mut().skip(first) {
                if finding.frames.start >= range.end || room == 0 {
                    break;
                }
                let start = finding.frames.start.max(range.start);
                let shared = FrameRange::new(start, finding.frames.end.min(range.end));
                *cut_off |= !join(&mut finding.aliases, alias.part(shared), &mut room);
            }
        });
        visited.map(drop).map_err(DumpError::Tables)
    }
}

impl Survey {
    fn count_frame(&mut self, frame: Gfn, kernel: Rights, user: Rights, usage: Use) {
        let cell = frame.raw() / self.cell_frames;
        if self.cells.last().is_none_or(|last| last.number != cell) {
            self.cells.push(Cell { number: cell, uses: [0; Use::COUNT] });
        }
        let uses = self.cells.last_mut().map(|last| &mut last.uses);
        if let Some(count) = uses.and_then(|uses| uses.get_mut(usage as usize)) {
            *count += 1;
        }
        let reach = match (user.is_empty(), user.contains(Rights::WRITE)) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => 2,
        };
        let by_kernel = self.frames.get_mut(usize::from(kernel.bits()));
        if let Some(count) = by_kernel.and_then(|row| row.get_mut(reach)) {
            *count += 1;
        }
        self.conflicting += u64::from(usage == Use::Conflict);
        self.user_code += u64::from(usage == Use::UserCode);
    }

    fn note(&mut self, frame: Gfn, kernel: Rights, user: Rights) {
        let room = self.findings.len() < MOST_FINDINGS;
        match self.findings.last_mut() {
            Some(last) if (last.frames.end, last.kernel, last.user) == (frame, kernel, user) => {
                last.frames.end = frame.plus(1);
            }
            _ if room => self.findings.push(Finding {
                frames: FrameRange::with_count(frame, 1),
                kernel,
                user,
                aliases: vec![],
            }),
            _ => self.cut_off = true,
        }
    }
}
