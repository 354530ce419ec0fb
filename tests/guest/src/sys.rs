//! Processes and mappings. This program has one thread, so a forked child may do what it likes.

use std::ffi::CString;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr::NonNull;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::mman::{
    MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, execv, fork, write};

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// Lets this process run on `cpu` only.
pub fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("moving to CPU {cpu}"))
}

/// Runs `work` in a child process; its error, if any, becomes a line on `errors`.
pub fn child(errors: &OwnedFd, work: impl FnOnce() -> Result<()>) -> Result<Pid> {
    // SAFETY: there is one thread, so the child inherits no lock that another one holds.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = match work() {
                Ok(()) => 0,
                Err(error) => {
                    let _ = write(errors, format!("{error:#}\n").as_bytes());
                    1
                }
            };
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Waits for a child and reports anything but a clean exit.
pub fn wait(child: Pid) -> Result<()> {
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => bail!("a process ended with {other:?}"),
    }
}

/// What is executed in a child.
#[derive(Clone, Copy)]
pub enum Program {
    /// The smallest there is: it only ends.
    Leave,
    /// This one, with a C library, which runs CPUID dozens of times before `main`.
    Own,
}

/// fork, exec of a program that ends at once, wait.
pub fn fork_and_exec(program: Program) -> Result<()> {
    let path = match program {
        Program::Leave => CString::new("/leave")?,
        Program::Own => CString::new("/proc/self/exe")?,
    };
    let arguments = [path.clone(), CString::new(crate::EXIT_ARGUMENT)?];
    // SAFETY: there is one thread, so the child inherits no lock that another one holds.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => wait(child),
        ForkResult::Child => {
            let _ = execv(&path, &arguments);
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(127) }
        }
    }
}

/// Brings up the network device `lo`, which is all the network there is.
pub fn raise_loopback() -> Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeros is a value of this structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP)?;
    // SAFETY: the kernel reads one `ifreq`, which outlives the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    nix::errno::Errno::result(answer).context("raising lo").map(drop)
}

/// Lets SIGSEGV end this process at once: the handler that Rust installs tries once more first.
pub fn end_at_sigsegv() -> Result<()> {
    // SAFETY: no handler of ours is installed.
    unsafe { signal(Signal::SIGSEGV, SigHandler::SigDfl) }?;
    Ok(())
}

/// Maps the page at `offset` of a file.
fn map_file(file: &File, offset: u64, rights: ProtFlags) -> Result<NonNull<libc::c_void>> {
    let length = NonZeroUsize::new(PAGE).context("no page")?;
    let offset = libc::off_t::try_from(offset)?;
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    unsafe { mmap(None, length, rights, MapFlags::MAP_SHARED, file, offset) }
        .context("mapping a page")
}

/// Writes to the byte at `offset` of a file, through a mapping.
pub fn write_at(file: &File, offset: u64) -> Result<()> {
    let page = map_file(file, offset, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    // SAFETY: inside the mapping.
    unsafe { page.cast::<u8>().write_volatile(0) };
    Ok(())
}

/// Inverts the byte at `offset` of a file, through a mapping.
pub fn invert_at(file: &File, offset: u64) -> Result<()> {
    let page = map_file(file, offset, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?.cast::<u8>();
    // SAFETY: inside the mapping.
    unsafe { page.write_volatile(!page.read_volatile()) };
    Ok(())
}

/// Calls the byte at `offset` of a file as a function, through a mapping.
pub fn execute_at(file: &File, offset: u64) -> Result<()> {
    let page = map_file(file, offset, ProtFlags::PROT_READ | ProtFlags::PROT_EXEC)?;
    // SAFETY: none can be given for what is there: this process is meant to be killed.
    let code: extern "C" fn() = unsafe { std::mem::transmute(page.as_ptr()) };
    code();
    Ok(())
}

/// A private anonymous mapping in pages of 4 KiB.
pub struct Pages {
    start: NonNull<libc::c_void>,
    length: usize,
}

impl Pages {
    /// Maps `pages` zeroed pages.
    pub fn map(pages: usize, rights: ProtFlags) -> Result<Self> {
        Self::with_flags(pages, rights, MapFlags::MAP_PRIVATE)
    }

    /// Maps `pages` zeroed pages that children share.
    pub fn map_shared(pages: usize) -> Result<Self> {
        Self::with_flags(pages, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED)
    }

    fn with_flags(pages: usize, rights: ProtFlags, flags: MapFlags) -> Result<Self> {
        let length = NonZeroUsize::new(pages * PAGE).context("a mapping of no pages")?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { mmap_anonymous(None, length, rights, flags) }?;
        let mapping = Self { start, length: length.get() };
        // SAFETY: the range is ours; the advice changes page sizes only.
        unsafe { madvise(start, mapping.length, MmapAdvise::MADV_NOHUGEPAGE) }?;
        Ok(mapping)
    }

    /// Changes the rights of every page.
    pub fn protect(&mut self, rights: ProtFlags) -> Result<()> {
        // SAFETY: the range is ours and no reference into it lives across this call.
        unsafe { mprotect(self.start, self.length, rights) }.context("mprotect")
    }

    /// First address.
    pub fn start(&self) -> NonNull<libc::c_void> {
        self.start
    }

    /// Writes `value` to the first byte of page `page`, which must be writable.
    pub fn touch(&mut self, page: usize, value: u8) {
        assert!(page < self.length / PAGE);
        // SAFETY: inside the mapping, by the line above.
        unsafe { self.start.cast::<u8>().add(page * PAGE).write_volatile(value) };
    }

    /// The first byte of page `page`, which must be readable.
    pub fn peek(&self, page: usize) -> u8 {
        assert!(page < self.length / PAGE);
        // SAFETY: inside the mapping, by the line above.
        unsafe { self.start.cast::<u8>().add(page * PAGE).read_volatile() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range is ours and nothing refers to it any more.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}
