//! The event channel: records ([`abi::event`]) to the debug console at port 0xe9, which the guest
//! cannot reach. Where there is none (bare machine, GRUB), the same things go to COM1 as text. Either
//! way they are published for the guest ([`crate::publish`]).

use crate::cpu::instructions::{
    halt_for_ever, port_read_u8, port_write_all, port_write_u8, port_write_u16, time_stamp,
};
use crate::publish::REGION;
use crate::task::{self, inbox::Post};
use abi::event::{Header, MAGIC, MAX_PAYLOAD, NO_ADDRESS, RecordKind, Violation, ViolationKind};
use abi::task::MessageKind;
use addr::{Gfn, Gpa};
use arrayvec::ArrayString;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};
use spin::mutex::SpinMutex;
use zerocopy::IntoBytes;

/// Port of the debug console; it reads as its own number.
pub const DEBUG_CONSOLE: u16 = 0xe9;
const COM1: u16 = 0x3f8;
const COM1_LINE_STATUS: u16 = COM1 + 5;
const TRANSMIT_EMPTY: u8 = 1 << 5;

struct Channel {
    debug_console: bool,
    /// Whoever has the channel by its lock is the only one to write records.
    publishes: bool,
}

static CHANNEL: SpinMutex<Channel> =
    SpinMutex::new(Channel { debug_console: false, publishes: true });
static SEQUENCE: AtomicU64 = AtomicU64::new(0);

/// Finds out where records go. Before this they go to COM1.
pub fn initialise() {
    CHANNEL.lock().debug_console = port_read_u8(DEBUG_CONSOLE) == DEBUG_CONSOLE.to_le_bytes()[0];
}

/// Sequence number of the latest record, 0 if there was none.
pub fn last_sequence() -> u64 {
    SEQUENCE.load(Ordering::Relaxed)
}

/// Sends one record, and answers its number; `text` says the same where only text can be shown.
fn send(channel: &mut Channel, kind: RecordKind, payload: &[u8], text: fmt::Arguments<'_>) -> u64 {
    let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed) + 1;
    let length = u16::try_from(payload.len().min(MAX_PAYLOAD)).unwrap_or(0);
    let payload = payload.get(..usize::from(length)).unwrap_or_default();
    let header = Header { magic: MAGIC, kind: kind as u16, length, sequence, time: time_stamp() };
    if channel.publishes {
        REGION.record(&header, payload);
    }
    if channel.debug_console {
        port_write_all(DEBUG_CONSOLE, header.as_bytes());
        port_write_all(DEBUG_CONSOLE, payload);
    } else {
        // Writing to a serial port cannot fail.
        let _ = writeln!(Serial, "ravelin: {text}\r");
    }
    sequence
}

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // Bounded: a machine without COM1 must not hang here.
            for _ in 0..100_000 {
                if port_read_u8(COM1_LINE_STATUS) & TRANSMIT_EMPTY != 0 {
                    break;
                }
            }
            port_write_u8(COM1, byte);
        }
        Ok(())
    }
}

fn send_text(channel: &mut Channel, kind: RecordKind, text: fmt::Arguments<'_>) {
    let mut line = ArrayString::<MAX_PAYLOAD>::new();
    // A line too long for a record is cut there.
    let _ = line.write_fmt(text);
    send(channel, kind, line.as_bytes(), text);
}

/// Reports a line of text.
pub fn log(text: fmt::Arguments<'_>) {
    send_text(&mut CHANNEL.lock(), RecordKind::Log, text);
}

/// Reports a structured record that is no violation.
pub fn record(kind: RecordKind, payload: &[u8], text: fmt::Arguments<'_>) {
    record_about(kind, payload, None, text);
}

/// The record is written here and now, whatever becomes of the warden, who gets a copy, and may
/// look at the frame that it is about.
fn record_about(kind: RecordKind, payload: &[u8], about: Option<Gfn>, text: fmt::Arguments<'_>) {
    let sequence = send(&mut CHANNEL.lock(), kind, payload, text);
    let kind = u32::from(kind as u16);
    task::tell_warden(Post { about, ..Post::new(MessageKind::Event, kind, sequence, payload) });
}

/// Whether there is a channel that takes records, not text.
pub fn has_channel() -> bool {
    CHANNEL.lock().debug_console
}

/// Writes a piece of a VM's protection state. It is no event: it goes to the host alone, and has the
/// number of the record before it.
pub fn state_part(part: &[u8], bytes: &[u8]) {
    let channel = CHANNEL.lock();
    let length = u16::try_from(part.len() + bytes.len()).unwrap_or(0);
    let (kind, sequence) = (RecordKind::State as u16, last_sequence());
    let header = Header { magic: MAGIC, kind, length, sequence, time: time_stamp() };
    if channel.debug_console {
        for piece in [header.as_bytes(), part, bytes] {
            port_write_all(DEBUG_CONSOLE, piece);
        }
    }
}

/// Reports a violation.
pub fn violation(violation: &Violation) {
    let kind = ViolationKind::from_number(violation.kind);
    if let Some(kind) = kind {
        let _channel = CHANNEL.lock();
        REGION.count_violation(kind);
    }
    let kind = kind.map_or("unknown", ViolationKind::name);
    let about = (violation.gpa != NO_ADDRESS).then(|| Gpa::new(violation.gpa).frame());
    record_about(
        RecordKind::Violation,
        violation.as_bytes(),
        about,
        format_args!(
            "violation {kind}: vCPU {} CPL {} RIP {:#x} GPA {:#x} old {:#x} new {:#x}",
            violation.vcpu,
            violation.cpl,
            violation.rip,
            violation.gpa,
            violation.old,
            violation.new
        ),
    );
}

/// Reports what makes it impossible to go on, then powers the machine off.
pub fn fatal(text: fmt::Arguments<'_>) -> ! {
    // Another CPU, or this one before its fault, may hold the channel: wait a while, then go ahead.
    let mut channel = None;
    for _ in 0..10_000_000 {
        channel = CHANNEL.try_lock();
        if channel.is_some() {
            break;
        }
    }
    match channel {
        Some(mut channel) => send_text(&mut channel, RecordKind::Fatal, text),
        None => {
            let mut channel = Channel { debug_console: true, publishes: false };
            send_text(&mut channel, RecordKind::Fatal, text);
        }
    }
    power_off()
}

/// Powers the machine off: through the ACPI control register where QEMU's machines have it, and
/// through the port that Bochs has for that.
pub fn power_off() -> ! {
    const PM1A_CONTROL: u16 = 0x604;
    const SLEEP_ENABLE_S5: u16 = 1 << 13;
    const BOCHS_SHUTDOWN: u16 = 0x8900;
    port_write_u16(PM1A_CONTROL, SLEEP_ENABLE_S5);
    port_write_all(BOCHS_SHUTDOWN, b"Shutdown");
    halt_for_ever()
}

/// Resets the machine (reset control register of every PC chipset since 1996).
pub fn reset() -> ! {
    port_write_u8(0xcf9, 0x02);
    port_write_u8(0xcf9, 0x06);
    halt_for_ever()
}

/// `log!("...", ...)`: a line on the event channel.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => { $crate::report::log(format_args!($($argument)*)) };
}
