//! Which page tables are the kernel's: every address that the dump gives evidence of is tried, and
//! the one whose tables map the most of a kernel image is taken.

use crate::image::{IMAGE, KernelImage};
use crate::{Dump, DumpError, Source};
use addr::{Gpa, Gva};
use alloc::vec::Vec;
use core::fmt;
use paging::guest::{Buffers, VisitError, Visited, visit_kernel_half};

/// Most candidates that are tried.
const MOST_CANDIDATES: usize = 64;
/// With page-table isolation a process's second table, which holds little of the kernel, lies right
/// behind the first: Linux `PTI_USER_PGTABLE_BIT`.
const USER_TABLE: u64 = 1 << 12;
/// Bits of CR3 that are an address.
const CR3_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Where an address came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The person who asked.
    Given,
    /// CR3 of the CPU with this number, by QEMU's note.
    Cpu(usize),
    /// The table before the one in CR3 of this CPU, which ran user code on isolated tables.
    CpuInUserMode(usize),
    /// `swapper_pg_dir` and `phys_base` in the note VMCOREINFO.
    VmcoreInfo,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given => write!(f, "as given"),
            Self::Cpu(number) => write!(f, "CR3 of CPU {number}, by QEMU's note"),
            Self::CpuInUserMode(number) => {
                write!(
                    f,
                    "CR3 of CPU {number}, by QEMU's note, which ran user code on isolated tables"
                )
            }
            Self::VmcoreInfo => write!(f, "swapper_pg_dir, by the kernel's note VMCOREINFO"),
        }
    }
}

/// The root of a kernel's page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// The root table.
    pub table: Gpa,
    /// Levels, 4 or 5.
    pub levels: u8,
    /// How it was found.
    pub evidence: Evidence,
}

impl<S: Source> Dump<S> {
    /// Finds the kernel's page tables and where they map its image. `given` is a value of CR3 to
    /// take instead of those that the dump names.
    ///
    /// # Errors
    /// `NoRoot`; `Tables` if the only tables there are are endless.
    pub fn find_root(&self, given: Option<u64>) -> Result<(Root, KernelImage), DumpError> {
        let candidates = self.candidates(given);
        let mut best: Option<(Root, KernelImage)> = None;
        let mut endless = None;
        for root in &candidates {
            match self.image_under(root) {
                Ok(image) if image.bytes() > best.as_ref().map_or(0, |(_, best)| best.bytes()) => {
                    best = Some((*root, image));
                }
                Ok(_) => {}
                Err(error) => endless = Some(DumpError::Tables(error)),
            }
        }
        let evidence = match (given, &self.vmcoreinfo) {
            (Some(_), _) => "the given CR3",
            (_, None) => "QEMU's notes of the CPUs (there is no VMCOREINFO)",
            (_, Some(_)) => "VMCOREINFO and QEMU's notes of the CPUs",
        };
        let none =
            DumpError::NoRoot { tried: candidates.len(), evidence, missing: self.memory.missing() };
        best.ok_or(endless.unwrap_or(none))
    }

    fn candidates(&self, given: Option<u64>) -> Vec<Root> {
        let mut candidates: Vec<Root> = Vec::new();
        let mut add = |address: u64, levels, evidence| {
            let root = Root { table: Gpa::new(address & CR3_ADDRESS), levels, evidence };
            let known = |other: &Root| (other.table, other.levels) == (root.table, root.levels);
            if candidates.len() < MOST_CANDIDATES && !candidates.iter().any(known) {
                candidates.push(root);
            }
        };
        if let Some(address) = given {
            add(address, 4, Evidence::Given);
            add(address, 5, Evidence::Given);
            return candidates;
        }
        if let Some((info, root)) = self.vmcoreinfo.as_ref().and_then(|i| Some((i, i.root()?))) {
            add(root.raw(), info.levels, Evidence::VmcoreInfo);
        }
        for cpu in &self.cpus {
            add(cpu.cr3, cpu.levels, Evidence::Cpu(cpu.number));
            if cpu.cr3 & USER_TABLE != 0 {
                let kernel = cpu.cr3 & !USER_TABLE;
                add(kernel, cpu.levels, Evidence::CpuInUserMode(cpu.number));
            }
        }
        candidates
    }

    /// What the tables under `root` map in the place of a kernel image.
    fn image_under(&self, root: &Root) -> Result<KernelImage, VisitError> {
        let mut image = KernelImage::default();
        self.visit_kernel(root, Gva::new(IMAGE.start), |leaf| image.add(&leaf))?;
        Ok(image)
    }

    /// Calls `f` for every leaf of the kernel half from `start` on.
    pub(crate) fn visit_kernel(
        &self,
        root: &Root,
        start: Gva,
        f: impl FnMut(paging::guest::GuestLeaf),
    ) -> Result<Visited, VisitError> {
        let mut buffers: Buffers = [[0; paging::ENTRIES]; 5];
        let read = |at, entries: &mut _| self.read_table(at, entries).is_some();
        let budget = self.table_budget();
        visit_kernel_half(root.table, root.levels, start, budget, &mut buffers, read, f)
    }
}
