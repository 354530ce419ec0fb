# What the switches to a guest and to a task share. RDI is the address of an area that begins with 16
# general registers in the order of their encoding; a guest's has its 16 XMM registers next.
#
# Each switch that is assembled has this before it, and all of them may be one module.

.ifndef registers_are_known
.set registers_are_known, 1

# The registers that a function must keep (System V ABI, AMD64, 3.2.1).
.macro push_preserved
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
.endm

.macro pop_preserved
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
.endm

# All but RAX and RSP; RDI, the address of the area, comes last.
.macro load_registers
    mov rcx, [rdi + 8]
    mov rdx, [rdi + 16]
    mov rbx, [rdi + 24]
    mov rbp, [rdi + 40]
    mov rsi, [rdi + 48]
    mov r8, [rdi + 64]
    mov r9, [rdi + 72]
    mov r10, [rdi + 80]
    mov r11, [rdi + 88]
    mov r12, [rdi + 96]
    mov r13, [rdi + 104]
    mov r14, [rdi + 112]
    mov r15, [rdi + 120]
    mov rdi, [rdi + 56]
.endm

# All but RAX, RSP and RDI, in two parts.
.macro save_low
    mov [rdi + 8], rcx
    mov [rdi + 16], rdx
    mov [rdi + 24], rbx
    mov [rdi + 40], rbp
    mov [rdi + 48], rsi
.endm

.macro save_high
    mov [rdi + 64], r8
    mov [rdi + 72], r9
    mov [rdi + 80], r10
    mov [rdi + 88], r11
    mov [rdi + 96], r12
    mov [rdi + 104], r13
    mov [rdi + 112], r14
    mov [rdi + 120], r15
.endm

.macro load_xmm
    movups xmm0, [rdi + 128]
    movups xmm1, [rdi + 144]
    movups xmm2, [rdi + 160]
    movups xmm3, [rdi + 176]
    movups xmm4, [rdi + 192]
    movups xmm5, [rdi + 208]
    movups xmm6, [rdi + 224]
    movups xmm7, [rdi + 240]
    movups xmm8, [rdi + 256]
    movups xmm9, [rdi + 272]
    movups xmm10, [rdi + 288]
    movups xmm11, [rdi + 304]
    movups xmm12, [rdi + 320]
    movups xmm13, [rdi + 336]
    movups xmm14, [rdi + 352]
    movups xmm15, [rdi + 368]
.endm

.macro save_xmm
    movups [rdi + 128], xmm0
    movups [rdi + 144], xmm1
    movups [rdi + 160], xmm2
    movups [rdi + 176], xmm3
    movups [rdi + 192], xmm4
    movups [rdi + 208], xmm5
    movups [rdi + 224], xmm6
    movups [rdi + 240], xmm7
    movups [rdi + 256], xmm8
    movups [rdi + 272], xmm9
    movups [rdi + 288], xmm10
    movups [rdi + 304], xmm11
    movups [rdi + 320], xmm12
    movups [rdi + 336], xmm13
    movups [rdi + 352], xmm14
    movups [rdi + 368], xmm15
.endm

.endif
