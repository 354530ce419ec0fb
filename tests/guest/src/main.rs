//! Init of the test initramfs.

fn main() {}
