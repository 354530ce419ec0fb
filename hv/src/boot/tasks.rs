//! The images of tasks among the boot modules.

use super::{Reason, copy_module};
use crate::memory::physical::Physical;
use crate::memory::window::Windows;
use crate::task::memory::Here;
use crate::task::{self, MOST_TASKS, WARDEN};
use abi::policy::Policy;
use abi::task::image;
use arrayvec::ArrayVec;
use boot_info::{BootInfo, Role};

/// Copies of the images, each with the number of its task.
pub type Images = ArrayVec<(usize, &'static [u8]), MOST_TASKS>;

/// Copies the images into the pool, where nobody can change them any more.
pub fn copy(memory: Physical<'_>, info: &BootInfo) -> Result<Images, Reason> {
    let wardens = info.all(Role::Warden).map(|module| (WARDEN, module));
    let others = (WARDEN + 1..).zip(info.all(Role::Task));
    let mut images = Images::new();
    for (number, module) in wardens.chain(others) {
        let image = copy_module(memory, module, image::MOST_BYTES, "a task's image is too large")?;
        let image = (number, &*image);
        images.try_push(image).map_err(|_| "there are too many tasks among the boot modules")?;
    }
    Ok(images)
}

/// Loads the tasks. They run when the guest does.
pub fn load(windows: &Windows, images: &Images, policy: &Policy) -> Result<(), Reason> {
    let here = Here { cpu: 0, windows };
    images.iter().try_for_each(|(number, bytes)| task::load::load(here, *number, bytes, policy))
}
