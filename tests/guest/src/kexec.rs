//! Job `kexec`: tries to put another kernel in the place of this one, by both system calls. What it
//! brings is a few instructions that say so on the serial port and reset the machine.
//!
//! `kexec:force` first does what an attacker would: it takes back, in the kernel's memory, that loading
//! was switched off.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;

use anyhow::Result;
use nix::errno::Errno;
use serde_json::json;

use crate::console::Console;
use crate::probe;
use crate::sys::PAGE;

const FORCE: &str = "/proc/ravelin_probes/kexec";
/// Where the program goes, as a physical address.
const PLACE: usize = 0x100_0000;

/// `cld; lea rsi, [message]; mov dx, 0x3f8`, then until the NUL `lodsb; out dx, al`; then 6 to port 0xcf9,
/// which resets a PC, and `hlt` for ever.
const CODE: [u8; 30] = [
    0xfc, 0x48, 0x8d, 0x35, 0x16, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03,
    0xee, 0xeb, 0xf8, 0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, 0xeb, 0xfd,
];
const MESSAGE: &[u8] = b"\r\n@@ kexeced {}\r\n\0";

/// `struct kexec_segment` of Linux, include/uapi/linux/kexec.h.
#[repr(C)]
struct Segment {
    buffer: *const u8,
    buffer_bytes: usize,
    memory: usize,
    memory_bytes: usize,
}

/// Runs the job; where the program was loaded, it does not come back.
pub fn run(console: &Console, force: bool) -> Result<()> {
    if force {
        probe::load_module()?;
        fs::write(FORCE, "1")?;
    }
    let program = [&CODE[..], MESSAGE].concat();
    let segment = Segment {
        buffer: program.as_ptr(),
        buffer_bytes: program.len(),
        memory: PLACE,
        memory_bytes: PAGE,
    };
    // SAFETY: one segment is given, whose buffer is as long as it says; the kernel copies it.
    let load = errno(unsafe {
        libc::syscall(libc::SYS_kexec_load, PLACE, 1_usize, &raw const segment, 0_usize)
    });
    // No kernel: where loading is allowed at all, that is what is said of it.
    let file = File::open("/proc/self/exe")?;
    let no_initrd = 1_usize << 2;
    // SAFETY: the command line is one NUL, as long as is said.
    let file_load = errno(unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            file.as_raw_fd(),
            -1,
            1_usize,
            c"".as_ptr(),
            no_initrd,
        )
    });
    console.report("kexec", &json!({"load": load, "file_load": file_load}))?;
    if load == 0 {
        // SAFETY: it ends this kernel, or fails.
        unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    }
    Ok(())
}

/// The error of a system call, 0 if there is none.
fn errno(result: i64) -> i32 {
    if result < 0 { Errno::last_raw() } else { 0 }
}
