//! Records for people and for programs: a line on the terminal, an object in a JSON-lines file.

use crate::events::{Body, Record};
pub use crate::symbols::{Kernels, Symbols};
use abi::event::{NO_ADDRESS, NO_REGISTER, Verdict, Violation, ViolationKind};
use anstyle::{AnsiColor, Style};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// The name of a violation's kind.
pub fn kind(violation: &Violation) -> String {
    ViolationKind::from_number(violation.kind)
        .map_or_else(|| format!("kind-{}", violation.kind), |kind| kind.name().to_owned())
}

/// The name of a violation's verdict.
pub fn verdict(violation: &Violation) -> String {
    Verdict::from_number(violation.verdict)
        .map_or_else(|| format!("verdict-{}", violation.verdict), |v| v.name().to_owned())
}

/// The name of the register that a violation is about.
pub fn register(violation: &Violation) -> Option<String> {
    if violation.register == NO_REGISTER {
        return None;
    }
    let number = violation.register;
    let known = match ViolationKind::from_number(violation.kind)? {
        ViolationKind::ControlRegister => return Some(format!("CR{number}")),
        ViolationKind::DescriptorTable => match number {
            0 => "GDTR",
            1 => "IDTR",
            2 => "LDTR",
            3 => "TR",
            _ => return Some(format!("table {number}")),
        },
        ViolationKind::Msr => match number {
            0x1b => "APIC_BASE",
            0x174 => "SYSENTER_CS",
            0x175 => "SYSENTER_ESP",
            0x176 => "SYSENTER_EIP",
            0xc000_0080 => "EFER",
            0xc000_0081 => "STAR",
            0xc000_0082 => "LSTAR",
            0xc000_0083 => "CSTAR",
            0xc000_0084 => "SFMASK",
            _ => return Some(format!("MSR {number:#x}")),
        },
        _ => return Some(format!("{number:#x}")),
    };
    Some(known.to_owned())
}

/// The record, which is of this `time`, as one JSON object. Addresses and values are hexadecimal text, since JSON's numbers
/// do not hold 64 bits everywhere; what has no value is left out.
pub fn json(record: &Record, symbols: &Symbols<'_>, time: Timestamp) -> Value {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            object.insert(name.to_owned(), value);
        }
    };
    put("time", json!(time.to_string()));
    put("sequence", json!(record.sequence));
    put("tsc", json!(record.tsc));
    if record.missing > 0 {
        put("missing", json!(record.missing));
    }
    match &record.body {
        Body::Log(text) => {
            put("record", json!("log"));
            put("text", json!(text));
        }
        Body::Fatal(text) => {
            put("record", json!("fatal"));
            put("text", json!(text));
        }
        Body::Violation(v) => {
            put("record", json!("violation"));
            put("vm", json!(v.vm));
            put("vcpu", json!(v.vcpu));
            put("cpl", json!(v.cpl));
            put("rip", hex(v.rip));
            put("symbol", json!(symbols.name(v.kernel_base, v.rip)));
            put("kernel_base", hex(v.kernel_base));
            put("kind", json!(kind(v)));
            put("register", json!(register(v)));
            put("gva", address(v.gva));
            put("target", json!(symbols.name(v.kernel_base, v.gva)));
            put("gpa", address(v.gpa));
            put("size", json!(v.size));
            put("old", hex(v.old));
            put("new", hex(v.new));
            put("verdict", json!(verdict(v)));
        }
        Body::Locked(lock) => {
            put("record", json!("locked"));
            put("stage", json!(lock.stage));
            put("kernel_base", hex(lock.kernel_base));
            put("ticks", json!(lock.ticks));
            put("levels", json!(lock.levels));
            put("leaves", json!(lock.leaves));
            put("text_frames", json!(lock.text_frames));
            put("rodata_frames", json!(lock.rodata_frames));
            put("code_frames", json!(lock.code_frames));
            put("writable_frames", json!(lock.writable_frames));
            put("conflicting_frames", json!(lock.conflicting_frames));
        }
        Body::Promoted(promotion) => {
            put("record", json!("promoted"));
            put("gva", hex(promotion.gva));
            put("gpa", hex(promotion.gpa));
            put("pages", json!(promotion.pages));
            put("authority", json!(authority(promotion.authority)));
        }
        Body::Alias(alias) => {
            put("record", json!("alias"));
            put("gpa", hex(alias.gpa));
            put("readable", json!(alias.readable));
            put("writable", json!(alias.writable));
            put("executable", json!(alias.executable));
        }
        Body::Succession(succession) => {
            put("record", json!("succession"));
            put("kernel_digest", json!(format!("{:016x}", succession.kernel_digest)));
            put("gpa", hex(succession.gpa));
        }
        Body::State(part, bytes) => {
            put("record", json!("state"));
            put("vm", json!(part.vm));
            put("offset", json!(part.offset));
            put("bytes", json!(bytes.len()));
            put("last", json!(part.last == 1));
        }
        Body::Unknown { kind, length } => {
            put("record", json!("unknown"));
            put("kind", json!(kind));
            put("length", json!(length));
        }
    }
    Value::Object(object)
}

/// The record as one line, with colours that `anstream` takes away where nobody sees them.
pub fn line(record: &Record, symbols: &Symbols<'_>) -> String {
    let (colour, text) = match &record.body {
        Body::Log(text) => (AnsiColor::BrightBlack, text.clone()),
        Body::Fatal(text) => (AnsiColor::Red, format!("FATAL: {text}")),
        Body::Violation(violation) => (AnsiColor::Red, violation_line(violation, symbols)),
        Body::Locked(lock) => (
            AnsiColor::Green,
            format!(
                "locked {}: {} pages of text, {} of read-only data, {} more executable, {} \
                 conflicting; {} leaves on {} levels in {} ticks",
                if lock.stage > 1 { "read-only data" } else { "kernel text" },
                lock.text_frames,
                lock.rodata_frames,
                lock.code_frames,
                lock.conflicting_frames,
                lock.leaves,
                lock.levels,
                lock.ticks
            ),
        ),
        Body::Promoted(promotion) => (
            AnsiColor::Yellow,
            format!(
                "{} page(s) at {:#x} became code, {}",
                promotion.pages,
                promotion.gva,
                authority(promotion.authority)
            ),
        ),
        Body::Alias(alias) => (
            AnsiColor::Yellow,
            format!(
                "frame {:#x} is writable and executable: {} writable and {} executable aliases",
                alias.gpa, alias.writable, alias.executable
            ),
        ),
        Body::Succession(succession) => (
            AnsiColor::Green,
            format!("kexec: the kernel {:016x} follows", succession.kernel_digest),
        ),
        Body::State(part, bytes) => (
            AnsiColor::BrightBlack,
            format!("{} bytes of the protection state, at {}", bytes.len(), part.offset),
        ),
        Body::Unknown { kind, length } => {
            (AnsiColor::Yellow, format!("record of unknown kind {kind}, {length} bytes"))
        }
    };
    let style = Style::new().fg_color(Some(colour.into()));
    let missing = match record.missing {
        0 => String::new(),
        missing => format!(" ({missing} records lost before it)"),
    };
    // One line, whatever text is made of: control characters could command a terminal.
    let text = text.replace(char::is_control, " ");
    format!("{style}ravelin[{}]{style:#} {text}{missing}", record.sequence)
}

fn violation_line(violation: &Violation, symbols: &Symbols<'_>) -> String {
    let mut line = format!("{}: {}", verdict(violation), kind(violation));
    if let Some(register) = register(violation) {
        line += &format!(" {register}");
    }
    if violation.gva != NO_ADDRESS {
        line += &format!(" at {}", place(symbols, violation.kernel_base, violation.gva));
    } else if violation.gpa != NO_ADDRESS {
        line += &format!(" at physical {:#x}", violation.gpa);
    }
    if violation.size > 0 || violation.register != NO_REGISTER {
        line += &format!(" {:#x} -> {:#x}", violation.old, violation.new);
    }
    let by = place(symbols, violation.kernel_base, violation.rip);
    line + &format!(" by {by} on cpu {}, cpl {}", violation.vcpu, violation.cpl)
}

/// An address with its name, if it has one.
pub fn place(symbols: &Symbols<'_>, kernel_base: u64, address: u64) -> String {
    match symbols.name(kernel_base, address) {
        Some(name) => format!("{address:#x} ({name})"),
        None => format!("{address:#x}"),
    }
}

fn authority(number: u32) -> String {
    if number == 0 { "unauthenticated".to_owned() } else { format!("authority {number}") }
}

fn hex(value: u64) -> Value {
    json!(format!("{value:#x}"))
}

fn address(value: u64) -> Value {
    if value == NO_ADDRESS { Value::Null } else { hex(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation(kind: ViolationKind, register: u32) -> Violation {
        Violation {
            vm: 0,
            vcpu: 1,
            kind: kind as u8,
            verdict: Verdict::Deny as u8,
            cpl: 0,
            reserved: 0,
            register,
            size: 8,
            rip: 0xffff_ffff_8100_0010,
            gva: NO_ADDRESS,
            gpa: 0x1000,
            old: 1,
            new: 2,
            kernel_base: 0,
        }
    }

    #[test]
    fn a_violation_has_every_field_that_has_a_value() {
        let body = Body::Violation(violation(ViolationKind::Msr, 0xc000_0082));
        let record = Record { sequence: 3, tsc: 9, missing: 0, body };
        assert_eq!(
            json(&record, &Symbols::default(), Timestamp::UNIX_EPOCH),
            json!({
                "time": "1970-01-01T00:00:00Z",
                "sequence": 3, "tsc": 9, "record": "violation", "vm": 0, "vcpu": 1, "cpl": 0,
                "rip": "0xffffffff81000010", "kernel_base": "0x0", "kind": "msr",
                "register": "LSTAR", "gpa": "0x1000", "size": 8, "old": "0x1", "new": "0x2",
                "verdict": "deny",
            })
        );
        let line = line(&record, &Symbols::default());
        assert!(line.contains("deny: msr LSTAR at physical 0x1000 0x1 -> 0x2"), "{line}");
    }

    #[test]
    fn registers_are_named_by_kind() {
        let name = |kind, number| register(&violation(kind, number));
        assert_eq!(name(ViolationKind::ControlRegister, 4).as_deref(), Some("CR4"));
        assert_eq!(name(ViolationKind::DescriptorTable, 1).as_deref(), Some("IDTR"));
        assert_eq!(name(ViolationKind::Msr, 0x10).as_deref(), Some("MSR 0x10"));
        assert_eq!(name(ViolationKind::WriteText, NO_REGISTER), None);
    }
}
