//! What the guest runs under: controls, each checked against what this CPU allows.

use crate::cpu::instructions::read_msr;
use x86_defs::msr;
use x86_defs::vmx::{entry_control, exit_control, pin, primary, secondary};

/// The five words of controls as they are before the lock.
#[derive(Clone, Copy, Debug)]
pub struct Controls {
    /// Pin-based.
    pub pin: u32,
    /// Primary processor-based.
    pub primary: u32,
    /// Secondary processor-based.
    pub secondary: u32,
    /// VM-exit.
    pub exit: u32,
    /// VM-entry.
    pub entry: u32,
}

/// A control, and what to say where it is missing.
type Needed = (u32, &'static str);

macro_rules! needed {
    ($($control:expr => $name:literal),* $(,)?) => {
        &[$(($control, concat!("this CPU's VMX lacks \"", $name, "\": nothing was started"))),*]
    };
}

const PIN: &[Needed] = needed! {
    pin::NMI_EXITING => "NMI exiting",
    pin::VIRTUAL_NMIS => "virtual NMIs",
};
/// Used for a moment only.
const PIN_LATER: &[Needed] = needed! { pin::ACTIVATE_TIMER => "activate VMX-preemption timer" };
const PRIMARY: &[Needed] = needed! {
    primary::USE_IO_BITMAPS => "use I/O bitmaps",
    primary::USE_MSR_BITMAPS => "use MSR bitmaps",
    primary::ACTIVATE_SECONDARY => "activate secondary controls",
};
/// Used for a while only.
const PRIMARY_LATER: &[Needed] = needed! {
    primary::CR3_LOAD_EXITING => "CR3-load exiting",
    primary::NMI_WINDOW_EXITING => "NMI-window exiting",
    primary::INTERRUPT_WINDOW_EXITING => "interrupt-window exiting",
};
const SECONDARY: &[Needed] = needed! {
    secondary::ENABLE_EPT => "enable EPT",
    secondary::ENABLE_VPID => "enable VPID",
    secondary::UNRESTRICTED_GUEST => "unrestricted guest",
};
/// From the lock on.
const SECONDARY_LATER: &[Needed] = needed! {
    secondary::DESCRIPTOR_TABLE_EXITING => "descriptor-table exiting",
};
/// Without these the guest lacks instructions that CPUID promises; a CPU that has the instruction
/// has the control.
const SECONDARY_WHERE_KNOWN: u32 = secondary::ENABLE_RDTSCP
    | secondary::ENABLE_INVPCID
    | secondary::ENABLE_XSAVES
    | secondary::ENABLE_USER_WAIT;
const EXIT: &[Needed] = needed! {
    exit_control::SAVE_DEBUG_CONTROLS => "save debug controls",
    exit_control::HOST_64_BIT => "host address-space size",
    exit_control::SAVE_PAT => "save IA32_PAT",
    exit_control::LOAD_PAT => "load IA32_PAT on exit",
    exit_control::SAVE_EFER => "save IA32_EFER",
    exit_control::LOAD_EFER => "load IA32_EFER on exit",
};
const ENTRY: &[Needed] = needed! {
    entry_control::LOAD_DEBUG_CONTROLS => "load debug controls",
    entry_control::IA32E_MODE => "IA-32e mode guest",
    entry_control::LOAD_PAT => "load IA32_PAT on entry",
    entry_control::LOAD_EFER => "load IA32_EFER on entry",
};

impl Controls {
    /// What this CPU gets; `split_execution`: mode-based execute control as well.
    ///
    /// # Errors
    /// A sentence that names the first control that is missing.
    pub fn of_this_cpu(split_execution: bool) -> Result<Self, &'static str> {
        let modes = if split_execution { secondary::MODE_BASED_EXECUTE } else { 0 };
        Ok(Self {
            pin: choose(msr::VMX_TRUE_PIN, PIN, PIN_LATER, 0)?,
            primary: choose(msr::VMX_TRUE_PRIMARY, PRIMARY, PRIMARY_LATER, 0)?,
            secondary: choose(
                msr::VMX_SECONDARY,
                SECONDARY,
                SECONDARY_LATER,
                SECONDARY_WHERE_KNOWN | modes,
            )?,
            exit: choose(msr::VMX_TRUE_EXIT, EXIT, &[], 0)?,
            entry: choose(msr::VMX_TRUE_ENTRY, ENTRY, &[], 0)?,
        })
    }
}

/// Whether this CPU has a secondary control.
pub fn has_secondary(control: u32) -> bool {
    allowed_one(msr::VMX_SECONDARY) & control != 0
}

/// High half of a capability register: controls that may be 1.
fn allowed_one(register: u32) -> u32 {
    let [_, _, _, _, high @ ..] = read_msr(register).to_le_bytes();
    u32::from_le_bytes(high)
}

/// Low half: controls that must be 1.
fn must_be_one(register: u32) -> u32 {
    let [low @ .., _, _, _, _] = read_msr(register).to_le_bytes();
    u32::from_le_bytes(low)
}

fn choose(
    register: u32,
    now: &[Needed],
    later: &[Needed],
    where_known: u32,
) -> Result<u32, &'static str> {
    let allowed = allowed_one(register);
    if let Some((_, missing)) = now.iter().chain(later).find(|(bit, _)| allowed & bit == 0) {
        return Err(missing);
    }
    let wanted = now.iter().fold(where_known, |all, (bit, _)| all | bit);
    Ok((wanted | must_be_one(register)) & allowed)
}
