//! Job `probe`: loads the probe module and runs every probe it lists, on CPU 0.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use abi::hypercall::Counter;
use anyhow::{Context as _, Result, bail};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::mman::ProtFlags;
use serde_json::json;

use crate::console::Console;
use crate::counters::Counters;
use crate::sys::{self, Pages};

const MODULE: &str = "/ravelin_probes.ko";
const LIST: &str = "/proc/ravelin_probes/list";
const DENIED: &str = "/proc/ravelin_probes/denied";
const RUN: &str = "/proc/ravelin_probes/run";

/// Reading it checks that the kernel-only registers of this CPU survive.
pub const STATE: &str = "/proc/ravelin_probes/state";

const OFF: &str = "/proc/ravelin_probes/off";

/// The probe that kills a CPU where it succeeds.
const CPU_KILLER: &str = "cpu-init-ipi";

/// The module's parameters and the kernel symbols whose addresses they take.
const SYMBOLS: [(&str, &str); 12] = [
    ("stext", "_stext"),
    ("etext", "_etext"),
    ("rodata", "linux_banner"),
    ("ro_after_init", "rodata_enabled"),
    ("jump_start", "__start___jump_table"),
    ("jump_end", "__stop___jump_table"),
    ("call_start", "__start_static_call_sites"),
    ("call_end", "__stop_static_call_sites"),
    ("stats_key", "sched_schedstats"),
    ("call_key", "__SCK__x86_pmu_handle_irq"),
    ("jit_enable", "bpf_jit_enable"),
    ("kexec_disabled", "kexec_load_disabled"),
];

/// `mov $0x52415645, %eax; ret`: what the module expects to run on the user page.
const USER_CODE: [u8; 6] = [0xb8, 0x45, 0x56, 0x41, 0x52, 0xc3];

/// Whether the initramfs brought the probe module.
pub fn has_module() -> bool {
    Path::new(MODULE).exists()
}

/// Loads the probe module, unless it is loaded.
pub fn load_module() -> Result<()> {
    if Path::new(LIST).exists() {
        return Ok(());
    }
    let file = File::open(MODULE).with_context(|| format!("opening {MODULE}"))?;
    let parameters = std::ffi::CString::new(parameters()?)?;
    finit_module(file, &parameters, ModuleInitFlags::empty())
        .with_context(|| format!("loading {MODULE}: was it built for this kernel?"))
}

fn parameters() -> Result<String> {
    // Root reads addresses unless this is 2; a kernel without the file hides nothing.
    let _ = fs::write("/proc/sys/kernel/kptr_restrict", "0");
    let mut found = [None; SYMBOLS.len()];
    for line in BufReader::new(File::open("/proc/kallsyms")?).lines() {
        let line = line?;
        let mut words = line.split(' ');
        let (Some(address), _, Some(name)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if let Some(index) = SYMBOLS.iter().position(|(_, symbol)| *symbol == name) {
            found[index] = Some(u64::from_str_radix(address, 16)?);
            if found.iter().all(Option::is_some) {
                break;
            }
        }
    }
    let mut text = String::new();
    for ((parameter, symbol), address) in SYMBOLS.iter().zip(found) {
        match address {
            Some(address @ 1..) => text += &format!("{parameter}={address:#x} "),
            _ => bail!("/proc/kallsyms shows no address of {symbol}"),
        }
    }
    Ok(text)
}

/// Powers off by the module, for a machine with a dead CPU, for which the kernel would wait.
pub fn power_off() -> Result<()> {
    Ok(fs::write(OFF, "1")?)
}

/// Which probes.
#[derive(Clone, Copy)]
pub enum Which {
    /// Those that the default policy refuses.
    Usual,
    /// Those that only a policy refuses which denies what the default one allows.
    Denied,
    /// Of the usual ones those with these names.
    Named(&'static [&'static str]),
}

/// Runs the job; whether every CPU is still alive.
pub fn run(console: &Console, counters: &Counters, which: Which) -> Result<bool> {
    sys::pin(0)?;
    keep_interrupts_on_cpu_0()?;
    load_module()?;
    let page = user_page()?;
    let mut alive = true;
    let list = match which {
        Which::Usual | Which::Named(_) => LIST,
        Which::Denied => DENIED,
    };
    for line in fs::read_to_string(list)?.lines() {
        let name = line.split('\t').next().unwrap_or(line);
        if matches!(which, Which::Named(names) if !names.contains(&name)) {
            continue;
        }
        let description = line.split('\t').nth(1).unwrap_or_default();
        let before = (counters.read(Counter::LastEvent), counters.read(Counter::Violations));
        let answer = run_probe(name, &page);
        let after = (counters.read(Counter::LastEvent), counters.read(Counter::Violations));
        let (result, detail) =
            answer.unwrap_or_else(|error| ("error".to_owned(), format!("{error:#}")));
        alive &= name != CPU_KILLER || result != "succeeded";
        console.report(
            "probe",
            &json!({
                "name": name,
                "description": description,
                "result": result,
                "detail": detail,
                "first_event": before.0,
                "last_event": after.0,
                "violations_before": before.1,
                "violations_after": after.1,
            }),
        )?;
    }
    Ok(alive)
}

/// Loads the module if need be and runs one probe; its result.
pub fn attempt(name: &str) -> Result<String> {
    load_module()?;
    Ok(run_probe(name, &user_page()?)?.0)
}

/// Result and detail of one probe.
fn run_probe(name: &str, page: &Pages) -> Result<(String, String)> {
    fs::write(RUN, format!("{name} {:p}", page.start()))?;
    let answer = fs::read_to_string(RUN)?;
    let mut words = answer.trim_end().splitn(3, '\t');
    match (words.next(), words.next(), words.next()) {
        (Some(ran), Some(result), Some(detail)) if ran == name => {
            Ok((result.to_owned(), detail.to_owned()))
        }
        _ => bail!("the module answered `{answer}`"),
    }
}

/// A page of this process that holds [`USER_CODE`] and may be executed.
fn user_page() -> Result<Pages> {
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
    let page = Pages::map(1, rights)?;
    // SAFETY: the mapping is writable and longer than the code, and nothing else refers to it.
    unsafe { page.start().cast::<[u8; USER_CODE.len()]>().write(USER_CODE) };
    Ok(page)
}

/// A probe may kill another CPU, and the interrupts that go there with it, the console's too.
fn keep_interrupts_on_cpu_0() -> Result<()> {
    for entry in fs::read_dir("/proc/irq")? {
        // Some interrupts cannot be moved; none of those belongs to the console.
        let _ = fs::write(entry?.path().join("smp_affinity"), "1");
    }
    Ok(())
}
