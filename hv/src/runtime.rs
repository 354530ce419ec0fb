//! What becomes of a panic. Memory functions are in [`freestanding`].

use core::panic::PanicInfo;
use freestanding as _;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    crate::report::fatal(format_args!("the hypervisor has a bug: {info}"))
}
