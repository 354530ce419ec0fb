//! Job `bpf`: packet filters, compiled or interpreted as the kernel is told, and each must do what it
//! says.
//!
//! Many at a time, so that their compiled forms share pages that are written and executed in turns.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::console::Console;

/// Filters at a time.
const FILTERS: u32 = 40;
const MESSAGE: [u8; 200] = [7; 200];

/// Two ends; the second takes only so many bytes of each message.
struct Filtered {
    sender: UnixDatagram,
    receiver: UnixDatagram,
    length: u32,
}

/// Runs the job.
pub fn run(console: &Console, rounds: u32) -> Result<()> {
    let enabled = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
        .context("is BPF's compiler in this kernel?")?;
    let mut ran = 0;
    for round in 0..rounds {
        let mut made = Vec::new();
        for index in 0..FILTERS {
            made.push(Filtered::new(1 + (index * 3 + round) % 199)?);
            // Every filter runs between the making of others.
            for filtered in &made {
                filtered.check()?;
                ran += 1;
            }
        }
    }
    console.report("bpf", &json!({"compiled": enabled.trim() == "1", "ran": ran}))
}

impl Filtered {
    fn new(length: u32) -> Result<Self> {
        let (sender, receiver) = UnixDatagram::pair()?;
        // BPF_RET | BPF_K: so much is kept of the message (Linux, include/uapi/linux/filter.h).
        let mut code = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: length }];
        let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
        // SAFETY: the option takes a program of the size given, which the kernel copies.
        let result = unsafe {
            libc::setsockopt(
                receiver.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                u32::try_from(size_of_val(&program))?,
            )
        };
        nix::errno::Errno::result(result).context("attaching a filter")?;
        Ok(Self { sender, receiver, length })
    }

    fn check(&self) -> Result<()> {
        self.sender.send(&MESSAGE)?;
        let mut buffer = [0; MESSAGE.len()];
        let received = self.receiver.recv(&mut buffer)?;
        ensure!(received == self.length as usize, "{received} bytes passed, not {}", self.length);
        Ok(())
    }
}
