//! What a CPU can do with extended page tables, and the pointer that hands it one.
//!
//! All CPUs of a machine must agree; whoever reads the register on each has to see to that.

use crate::Level;
use addr::Hfn;
use mtrr::MemoryType;

/// The value of `IA32_VMX_EPT_VPID_CAP` (Intel SDM volume 3D, appendix A.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptCapabilities(u64);

/// Witness that the CPU takes entries that allow fetching and not reading, which are misconfigured
/// on others. From [`EptCapabilities::execute_only`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecuteOnly(());

impl ExecuteOnly {
    /// That of an entry that was written by means of a witness.
    pub(super) const REMEMBERED: Self = Self(());
}

impl EptCapabilities {
    /// Number of `IA32_VMX_EPT_VPID_CAP`. It exists if the secondary processor-based controls may
    /// enable EPT or VPID.
    pub const MSR: u32 = 0x48c;

    /// Takes the value of the register.
    pub const fn from_msr(value: u64) -> Self {
        Self(value)
    }
    /// Whether leaves may allow fetching and not reading.
    pub fn execute_only(self) -> Option<ExecuteOnly> {
        self.has(0).then_some(ExecuteOnly(()))
    }
    /// Whether tables may have four levels.
    pub const fn four_levels(self) -> bool {
        self.has(6)
    }
    /// Whether the CPU may cache tables as write-back memory.
    pub const fn write_back(self) -> bool {
        self.has(14)
    }
    /// The largest leaf that a table may have; smaller ones are allowed too.
    pub const fn largest_leaf(self) -> Level {
        match (self.has(16), self.has(17)) {
            (true, true) => Level::Page1G,
            (true, false) => Level::Page2M,
            (false, _) => Level::Page4K,
        }
    }
    /// Whether the CPU can set accessed and dirty flags.
    pub const fn accessed_dirty(self) -> bool {
        self.has(21)
    }
    /// Whether INVEPT can flush the translations of one table (type 1).
    pub const fn invept_single_context(self) -> bool {
        self.has(20) && self.has(25)
    }
    /// Whether INVEPT can flush the translations of all tables (type 2).
    pub const fn invept_all_contexts(self) -> bool {
        self.has(20) && self.has(26)
    }

    const fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }
}

/// Why a CPU cannot use our tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EptUnsupported {
    /// [`EptCapabilities::four_levels`] is false.
    #[error("the CPU takes no extended page tables of four levels: use another machine")]
    FourLevels,
    /// [`EptCapabilities::write_back`] is false.
    #[error("the CPU cannot cache extended page tables as write-back memory: use another machine")]
    WriteBack,
}

/// The extended-page-table pointer of a VMCS (section 25.6.11; 24.6.11 in older editions), and the operand
/// of INVEPT.
///
/// The CPU sets no accessed and dirty flags: if it did, each walk of the guest's own tables would
/// count as a write, and be refused where those are read only (section 29.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eptp(u64);

/// Bits 5:3: levels of the table less one.
const FOUR_LEVELS: u64 = 3 << 3;

impl Eptp {
    /// The pointer to the root of a [`PageTable`](crate::PageTable) of format
    /// [`Ept`](super::Ept), which must live as long as a CPU uses the pointer.
    ///
    /// # Errors
    /// The CPU lacks what our tables need.
    pub fn new(root: Hfn, capabilities: EptCapabilities) -> Result<Self, EptUnsupported> {
        if !capabilities.four_levels() {
            return Err(EptUnsupported::FourLevels);
        }
        if !capabilities.write_back() {
            return Err(EptUnsupported::WriteBack);
        }
        let caching = MemoryType::WriteBack as u64;
        Ok(Self(root.start().raw() | FOUR_LEVELS | caching))
    }

    /// The 64 bits.
    pub const fn raw(self) -> u64 {
        self.0
    }
}
