//! The saved protection state among the boot modules.

use super::{NO_POOL, Reason};
use crate::memory::physical::Physical;
use crate::memory::pool::Block;
use crate::vm::restore;
use abi::policy::Policy;
use addr::PAGE_SIZE;
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
    if module.length > MOST_BYTES as u64 {
        return Err("the saved protection state is refused: it is too long to be one");
    }
    let bytes = Block::take(module.length.div_ceil(PAGE_SIZE).max(1)).ok_or(NO_POOL)?.leak();
    let bytes = bytes.get_mut(..addr::length(module.length)).ok_or(NO_POOL)?;
    memory.read(module.start, bytes)?;
    let saved = Saved::parse(bytes).unwrap_or_else(|damage| restore::refuse(&damage));
    if policy_is_weaker(&saved.settings.policy, &policy) {
        restore::refuse(&Difference::Policy);
    }
    restore::keep(saved);
    Ok(saved.settings.policy)
}
