# The world switch (SDM 3C, chapters 27 and 28; 26 and 27 in older editions).
#
# vmx_enter(rdi = SwitchArea, rsi = VMCS launched before): runs the guest until its next exit and
# returns 0, or 1 if the CPU refused the instruction. SwitchArea: 16 general registers (RSP unused:
# the VMCS has it), 16 XMM registers.
#
# Rust code compiled for this target uses XMM registers, so the guest's are swapped here. Its upper
# YMM halves, x87 and MXCSR are never touched by the hypervisor and need no swap.

.section .text.switch, "ax"
.global vmx_enter
.balign 64
vmx_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rdi
    mov eax, 0x6c14                     # host RSP
    vmwrite rax, rsp
    test rsi, rsi                       # the flags outlive the loads
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
    mov rax, [rdi]
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
    jnz 1f
    vmlaunch
    jmp 2f
1:  vmresume
2:  mov eax, 1
    add rsp, 8
    jmp 3f

.global vmx_exit
.balign 16
vmx_exit:
    push rdi
    mov rdi, [rsp + 8]
    mov [rdi], rax
    mov [rdi + 8], rcx
    mov [rdi + 16], rdx
    mov [rdi + 24], rbx
    mov [rdi + 40], rbp
    mov [rdi + 48], rsi
    pop rcx
    mov [rdi + 56], rcx
    mov [rdi + 64], r8
    mov [rdi + 72], r9
    mov [rdi + 80], r10
    mov [rdi + 88], r11
    mov [rdi + 96], r12
    mov [rdi + 104], r13
    mov [rdi + 112], r14
    mov [rdi + 120], r15
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
    xor eax, eax
    pop rdi
3:  pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# An NMI that hits the hypervisor: makes the next entry exit at once, by a timer that runs out
# immediately, so that neither a shootdown nor the guest misses it. Unlike AMD's, this CPU has no
# way to hold NMIs off between the last look at the shootdown's state and the entry.
.global vmx_host_nmi
.balign 16
vmx_host_nmi:
    push rax
    push rcx
    mov eax, 0x4000                     # pin-based controls
    vmread rcx, rax
    or ecx, 1 << 6                      # activate the timer, whose value stays 0
    vmwrite rax, rcx
    pop rcx
    pop rax
    iretq
