//! Job `kexec`: tries to put another kernel in the place of this one, by both system calls.
//!
//! - `kexec` brings a few instructions that say so on the serial port and reset the machine.
//! - `kexec:force` first does what an attacker would: it takes back, in the kernel's memory, that
//!   loading was switched off.
//! - `kexec:file` and `kexec:load` start the kernel in `/kexec`, by one system call or the other; in
//!   its file system there is a file `/successor`, so it does the job `ravelin.next=`. `kexec:changed` is `kexec:file` with one byte
//!   of the kernel changed, `kexec:tables` with one of the firmware's ACPI tables.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use serde_json::json;

use crate::console::Console;
use crate::probe;
use crate::sys::{self, PAGE};

const FORCE: &str = "/proc/ravelin_probes/kexec";
const KERNEL: &str = "/kexec/vmlinuz";
const INITRD: &str = "/kexec/initrd";
/// What the other kernel is to be told: with it that could not be locked whole, but Ravelin starts it with
/// the command line of the first one.
const IGNORED: &CStr = c"rodata=off ravelin.job=idle";
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

impl Segment {
    /// `bytes` at a physical address, with zeros behind them up to a length.
    fn new(bytes: &[u8], memory: usize, length: usize) -> Self {
        let memory_bytes = length.max(bytes.len()).next_multiple_of(PAGE);
        Self { buffer: bytes.as_ptr(), buffer_bytes: bytes.len(), memory, memory_bytes }
    }
}

/// Runs the job; where something was loaded, it does not come back.
pub fn run(console: &Console, how: &str) -> Result<()> {
    let answer = match how {
        "" | "force" => return planted(console, how == "force"),
        // The last of several has none to follow it.
        "file" if !Path::new(KERNEL).exists() => libc::ENOENT,
        "file" => load_file(&File::open(KERNEL)?)?,
        "changed" => load_file(&changed()?)?,
        "load" => load_segments()?,
        "tables" => {
            change_tables()?;
            load_file(&File::open(KERNEL)?)?
        }
        other => bail!("`kexec:{other}`: what is that?"),
    };
    console.report("loaded", &json!({"error": answer}))?;
    leave(answer)
}

fn planted(console: &Console, force: bool) -> Result<()> {
    if force {
        probe::load_module()?;
        fs::write(FORCE, "1")?;
    }
    let program = [&CODE[..], MESSAGE].concat();
    let load = load(PLACE, &[Segment::new(&program, PLACE, 0)]);
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
    leave(load)
}

/// Starts what was loaded, if it was.
fn leave(error: i32) -> Result<()> {
    if error == 0 {
        // SAFETY: it ends this kernel, or fails.
        unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    }
    Ok(())
}

fn load_file(kernel: &File) -> Result<i32> {
    let initrd = File::open(INITRD)?;
    // SAFETY: the command line is as long as is said.
    Ok(errno(unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            IGNORED.count_bytes() + 1,
            IGNORED.as_ptr(),
            0_usize,
        )
    }))
}

/// The kernel with one byte changed, in the middle of what is compressed.
fn changed() -> Result<File> {
    let copy = "/tmp/changed";
    fs::copy(KERNEL, copy)?;
    let mut file = File::options().read(true).write(true).open(copy)?;
    let middle = SeekFrom::Start(file.metadata()?.len() / 2);
    let mut byte = [0];
    file.seek(middle)?;
    file.read_exact(&mut byte)?;
    file.seek(middle)?;
    file.write_all(&[!byte[0]])?;
    drop(file);
    // The kernel takes no file that is open for writing.
    Ok(File::open(copy)?)
}

/// Inverts the first byte of the second page of the DSDT, whose address is in the kernel's log.
fn change_tables() -> Result<()> {
    const READ_ALL: i32 = 3;
    let mut log = vec![0; 1 << 18];
    let room = i32::try_from(log.len())?;
    // SAFETY: the buffer is as long as is said.
    let length = unsafe { libc::klogctl(READ_ALL, log.as_mut_ptr().cast(), room) };
    let log = String::from_utf8_lossy(log.get(..usize::try_from(length)?).unwrap_or_default());
    let (_, rest) = log.split_once("ACPI: DSDT 0x").context("the log names no DSDT")?;
    let start = u64::from_str_radix(rest.split(' ').next().unwrap_or_default(), 16)?;
    let memory = File::options().read(true).write(true).open("/dev/mem")?;
    sys::invert_at(&memory, (start & !(PAGE as u64 - 1)) + PAGE as u64)
}

/// Does what a loader does with the older system call, as little of it as Ravelin needs: there is no
/// memory map, for one.
fn load_segments() -> Result<i32> {
    const KERNEL_AT: usize = 0x1000_0000;
    const INITRD_AT: usize = 0x1800_0000;
    const PARAMETERS_AT: usize = 0x0f00_0000;
    const LINE_AT: usize = PARAMETERS_AT + PAGE;
    const PROGRAM_AT: usize = LINE_AT + PAGE;
    const HEADER: std::ops::Range<usize> = 0x1f1..0x26c;
    let (kernel, initrd, line) = (fs::read(KERNEL)?, fs::read(INITRD)?, IGNORED.to_bytes());
    let header = kernel.get(HEADER).context("the kernel is too short")?;
    let (setup, kernel) = kernel.split_at((usize::from(kernel[HEADER.start]) + 1) * 512);
    let init_size = u32::from_le_bytes(setup[0x260..0x264].try_into()?) as usize;
    let mut parameters = vec![0; PAGE];
    parameters[HEADER].copy_from_slice(header);
    for (at, value) in [(0x218, INITRD_AT), (0x21c, initrd.len()), (0x228, LINE_AT)] {
        parameters[at..at + 4].copy_from_slice(&u32::try_from(value)?.to_le_bytes());
    }
    // mov rsi, PARAMETERS_AT; mov rax, KERNEL_AT + 0x200; jmp rax
    let mut program = vec![0x48, 0xbe];
    program.extend(PARAMETERS_AT.to_le_bytes());
    program.extend([0x48, 0xb8]);
    program.extend((KERNEL_AT + 0x200).to_le_bytes());
    program.extend([0xff, 0xe0]);
    Ok(load(
        PROGRAM_AT,
        &[
            Segment::new(kernel, KERNEL_AT, init_size),
            Segment::new(&initrd, INITRD_AT, 0),
            Segment::new(&parameters, PARAMETERS_AT, 0),
            Segment::new(line, LINE_AT, 0),
            Segment::new(&program, PROGRAM_AT, 0),
        ],
    ))
}

fn load(entry: usize, segments: &[Segment]) -> i32 {
    // SAFETY: every segment's buffer is as long as it says; the kernel copies it.
    errno(unsafe {
        libc::syscall(libc::SYS_kexec_load, entry, segments.len(), segments.as_ptr(), 0_usize)
    })
}

/// The error of a system call, 0 if there is none.
fn errno(result: i64) -> i32 {
    if result < 0 { Errno::last_raw() } else { 0 }
}
