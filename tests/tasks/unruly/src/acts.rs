//! What ends a task at once.

use abi::task::{END, INFO, STACK_BYTES, STACK_TOP};
use core::arch::asm;
use core::hint::black_box;
use task_rt::{Mapping, Secret, log};

/// Machine code of `ret`.
const RET: u8 = 0xc3;
/// Where nothing of the task's is.
const FREE: u64 = 16 << 30;

/// An instruction that CPL 3 must not execute here, or that raises an exception.
macro_rules! instruction {
    ($($line:literal),+) => {
        || {
            // SAFETY: raises an exception that ends the task. Where it does not, which is the
            // failure that is looked for, the task says so and ends.
            unsafe {
                asm!($($line),+, inout("rax") 0_u64 => _, inout("rcx") 0xc000_0082_u64 => _,
                     inout("rdx") 0xe9_u64 => _);
            }
        }
    };
}

type Act = fn();

/// Every act by its name.
const ACTS: &[(&str, Act)] = &[
    ("null", || read(0)),
    ("wild-call", || call(0x1234_5678_9000)),
    ("wild-jump", || call(0x1234_5678_9abc_def0)),
    ("stack", || {
        dig(1);
    }),
    ("loop", || {
        loop {
            core::hint::spin_loop();
        }
    }),
    ("read-image", || read(0x10_0000)),
    ("read-apic", || read(0xfee0_0020)),
    ("read-guard", || read(STACK_TOP - STACK_BYTES - 8)),
    ("read-past-end", || read(END)),
    ("read-high", || read(0xffff_ffff_8000_0000)),
    ("write-text", || write(write as fn(u64) as usize as u64)),
    ("write-rodata", || write(ACTS.as_ptr().addr() as u64)),
    ("write-info", || write(INFO)),
    ("run-stack", run_stack),
    ("run-data", run_data),
    ("run-mapped", run_mapped),
    ("run-secret", run_secret),
    ("cli", instruction!("cli")),
    ("sti", instruction!("sti")),
    ("hlt", instruction!("hlt")),
    ("read-cr0", instruction!("mov rax, cr0")),
    ("write-cr3", instruction!("mov cr3, rax")),
    ("write-dr7", instruction!("mov dr7, rax")),
    ("in", instruction!("in al, dx")),
    ("out", instruction!("out dx, al")),
    ("rdmsr", instruction!("rdmsr")),
    ("wrmsr", instruction!("wrmsr")),
    ("lgdt", instruction!("lgdt [rsp]")),
    ("lidt", instruction!("lidt [rsp]")),
    ("ltr", instruction!("ltr ax")),
    ("invlpg", instruction!("invlpg [rsp]")),
    ("swapgs", instruction!("swapgs")),
    ("clts", instruction!("clts")),
    ("wbinvd", instruction!("wbinvd")),
    ("syscall", instruction!("syscall")),
    ("sysenter", instruction!("sysenter")),
    ("int-fault", instruction!("int 14")),
    ("int-nmi", instruction!("int 2")),
    ("int-timer", instruction!("int 0xec")),
    ("int3", instruction!("int3")),
    ("far-return", instruction!("push 8", "lea rax, [rip + 2f]", "push rax", "retfq", "2:")),
    ("stack-segment", instruction!("mov ax, 0x10", "mov ss, ax")),
    ("ud2", instruction!("ud2")),
    ("divide", instruction!("xor edx, edx", "xor ecx, ecx", "div ecx")),
    ("x87", instruction!("push 0x33b", "fldcw [rsp]", "fld1", "fldz", "fdivp", "fwait")),
    ("avx", instruction!("vzeroupper")),
    ("xsetbv", instruction!("xor ecx, ecx", "xsetbv")),
    ("trap-flag", instruction!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "nop")),
    ("vmmcall", instruction!("vmmcall")),
    ("vmcall", instruction!("vmcall")),
    ("vmrun", instruction!("vmrun rax")),
    ("vmxoff", instruction!("vmxoff")),
];

/// The act with this name.
pub fn find(name: &str) -> Option<Act> {
    ACTS.iter().find(|(act, _)| *act == name).map(|(_, act)| *act)
}

fn read(address: u64) {
    // SAFETY: reading changes nothing, and where nothing can be read the task ends.
    black_box(unsafe { (address as *const u8).read_volatile() });
}

fn write(address: u64) {
    // SAFETY: ends the task; if not, the task says so and ends.
    unsafe { (address as *mut u8).write_volatile(RET) };
}

fn call(address: u64) {
    // SAFETY: what is there is a `ret`, or nothing.
    unsafe { asm!("call {}", in(reg) address, clobber_abi("C")) };
}

/// Uses more and more of the stack.
fn dig(depth: u64) -> u64 {
    let here = black_box([depth; 64]);
    if depth == u64::MAX {
        return 0;
    }
    black_box(dig(depth + 1)) ^ here[0]
}

fn run_stack() {
    let code = black_box([RET; 8]);
    call(code.as_ptr().addr() as u64);
}

fn run_data() {
    static mut CODE: [u8; 8] = [RET; 8];
    call((&raw const CODE).addr() as u64);
}

fn run_mapped() {
    match Mapping::new(FREE, 1) {
        Ok(mut memory) => {
            memory.fill(RET);
            call(FREE);
        }
        Err(error) => log!("nothing can be mapped: {error:?}"),
    }
}

fn run_secret() {
    let mut secret = match Secret::new(1) {
        Ok(secret) => secret,
        Err(error) => return log!("no secret can be made: {error:?}"),
    };
    match secret.map(FREE) {
        Ok(mut memory) => {
            memory.fill(RET);
            call(FREE);
        }
        Err(error) => log!("the secret cannot be mapped: {error:?}"),
    }
}
