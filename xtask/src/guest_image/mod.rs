//! What a test guest boots from: the test program as init, the probe module for one kernel, and
//! the archive that holds them.

mod archive;
mod build;
mod leave;

pub use archive::{command, initramfs, module, module_loader, successor};
pub use build::{build_init, build_probes};
