//! Known values in every register that user mode can see and a hypervisor's own code could
//! touch: x87, MXCSR, XMM0 to XMM15, the upper halves of YMM0 to YMM15.

use std::arch::asm;

use anyhow::{Result, ensure};

/// The image of FXSAVE64 (AMD64 manual volume 2, section 11.4.4).
#[repr(C, align(16))]
struct Image([u8; 512]);

const CONTROL_WORD: std::ops::Range<usize> = 0..2;
const TAGS: usize = 4;
const MXCSR: std::ops::Range<usize> = 24..28;
const X87: usize = 32;
const XMM: usize = 160;
const XMM_END: usize = 416;

/// Extended precision, rounding down, all exceptions masked.
const ODD_CONTROL_WORD: u16 = 0x077f;
/// Flush to zero, rounding up, all exceptions masked.
const ODD_MXCSR: u32 = 0xdf80;
/// MXCSR after reset, which the ABI wants.
static DEFAULT_MXCSR: u32 = 0x1f80;

/// System calls and CPUID instructions per check.
const ROUNDS: u64 = 50;
/// Turns of the empty loop between two of them.
const SPINS: i32 = 2000;

/// Upper halves of YMM0 to YMM15.
type Upper = [[u64; 2]; 16];

impl Image {
    /// Values that differ from register to register and from `seed` to `seed`.
    fn new(seed: u8) -> Self {
        let mut image = Self([0; 512]);
        image.0[CONTROL_WORD].copy_from_slice(&ODD_CONTROL_WORD.to_le_bytes());
        image.0[TAGS] = 0xff;
        image.0[MXCSR].copy_from_slice(&ODD_MXCSR.to_le_bytes());
        for (index, register) in image.0[X87..XMM].chunks_mut(16).enumerate() {
            // A normal number: integer bit set, exponent of 1.0.
            register[..8].fill(seed ^ index.to_le_bytes()[0]);
            register[7] |= 0x80;
            register[8..10].copy_from_slice(&0x3fff_u16.to_le_bytes());
        }
        for (index, byte) in image.0[XMM..XMM_END].iter_mut().enumerate() {
            *byte = index.to_le_bytes()[0].wrapping_mul(7) ^ seed;
        }
        image
    }
}

/// Loads known values, makes system calls and CPUID in a loop of some milliseconds, and compares.
///
/// # Errors
/// Names the first register that changed.
pub fn check(seed: u8) -> Result<()> {
    let image = Image::new(seed);
    let upper: Upper = std::array::from_fn(|i| [i as u64 ^ u64::from(seed), !(i as u64)]);
    let mut image_after = Image([0; 512]);
    let mut upper_after: Upper = [[0; 2]; 16];
    let avx = std::is_x86_feature_detected!("avx");
    hold(&image, &upper, avx, &mut image_after, &mut upper_after);

    ensure!(image.0[CONTROL_WORD] == image_after.0[CONTROL_WORD], "x87 control word changed");
    ensure!(image.0[MXCSR] == image_after.0[MXCSR], "MXCSR changed");
    let pairs = image.0.chunks(16).zip(image_after.0.chunks(16)).enumerate();
    for (index, (before, after)) in pairs.take(XMM_END / 16).skip(X87 / 16) {
        if index < XMM / 16 {
            let number = index - X87 / 16;
            ensure!(before[..10] == after[..10], "ST{number}: {before:x?} became {after:x?}");
        } else {
            let number = index - XMM / 16;
            ensure!(before == after, "XMM{number}: {before:x?} became {after:x?}");
        }
    }
    for (number, (before, after)) in upper.iter().zip(&upper_after).enumerate().filter(|_| avx) {
        ensure!(before == after, "upper YMM{number}: {before:x?} became {after:x?}");
    }
    Ok(())
}

/// Keeps `image` and, with `avx`, `upper` in the registers for a while and stores them again.
fn hold(image: &Image, upper: &Upper, avx: bool, image_after: &mut Image, upper_after: &mut Upper) {
    // SAFETY: the pointers are to live, aligned structures of the right sizes; AVX instructions
    // run only if the CPU has them. Every vector and x87 register is declared as changed, and
    // control word, MXCSR and x87 stack are back to what the ABI wants at the end. RBX is kept.
    unsafe {
        asm!(
            // The upper halves first: FXRSTOR leaves them alone.
            "test r10d, r10d",
            "jz 2f",
            ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "vinsertf128 ymm\\i, ymm\\i, xmmword ptr [r8 + 16 * \\i], 1",
            ".endr",
            "2:",
            "fxrstor64 [r12]",
            "3:",
            "mov eax, {getppid}",
            "syscall",
            "mov r14, rbx",
            "xor eax, eax",
            "xor ecx, ecx",
            "cpuid",
            "mov rbx, r14",
            "mov ecx, {spins}",
            "4:",
            "dec ecx",
            "jnz 4b",
            "dec r15d",
            "jnz 3b",
            "fxsave64 [r13]",
            "test r10d, r10d",
            "jz 5f",
            ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "vextractf128 xmmword ptr [r9 + 16 * \\i], ymm\\i, 1",
            ".endr",
            "vzeroupper",
            "5:",
            "fninit",
            "ldmxcsr [{default}]",
            getppid = const libc::SYS_getppid,
            spins = const SPINS,
            default = in(reg) &raw const DEFAULT_MXCSR,
            in("r8") upper,
            in("r9") upper_after,
            in("r10") u64::from(avx),
            in("r12") image,
            in("r13") image_after,
            inout("r15") ROUNDS => _,
            out("rax") _, out("rcx") _, out("rdx") _, out("r11") _, out("r14") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
}
