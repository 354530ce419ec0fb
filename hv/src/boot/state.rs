//! The saved protection state among the boot modules.

use super::{Reason, copy_module};
use crate::memory::physical::Physical;
use crate::vm::restore;
use abi::policy::Policy;
use boot_info::{BootInfo, Role};
use protection::compare::{Difference, policy_is_weaker};
use protection::record::{MOST_BYTES, Saved};

/// Copies it into the pool, where nobody can change it any more, judges the copy, and answers the
/// policy that takes force: its own, unless that allows more than `policy`. The module is
/// forgotten, so that the kernel is put where it would be without it.
#[inline(never)]
pub fn read(memory: Physical<'_>, info: &mut BootInfo, policy: Policy) -> Result<Policy, Reason> {
    let Some(module) = info.module(Role::State) else { return Ok(policy) };
    info.modules.retain(|module| module.role != Role::State);
    const TOO_LONG: Reason = "the saved protection state is refused: it is too long to be one";
    let bytes = copy_module(memory, module, MOST_BYTES as u64, TOO_LONG)?;
    let saved = Saved::parse(bytes).unwrap_or_else(|damage| restore::refuse(&damage));
    if policy_is_weaker(&saved.settings.policy, &policy) {
        restore::refuse(&Difference::Policy);
    }
    restore::keep(saved);
    Ok(saved.settings.policy)
}
