# The world switch (APM 15.5, 15.6).
#
# svm_enter(rdi = SwitchArea, rsi = VMCB): runs the guest until its next exit.
# SwitchArea: 16 general registers (RAX and RSP unused: the VMCB has them), 16 XMM registers, then
# the physical addresses of the guest's VMCB and of the host's VMSAVE page.
#
# Rust code compiled for this target uses XMM registers, so the guest's are swapped here. Its upper
# YMM halves, x87 and MXCSR are never touched by the hypervisor and need no swap.

.section .text.switch, "ax"
.global svm_enter
.balign 64
svm_enter:
    push_preserved
    push rdi
    mov rax, [rdi + 384]
    load_xmm
    load_registers
    vmload rax
    vmrun rax
    vmsave rax
    push rdi
    mov rdi, [rsp + 8]
    save_low
    pop rcx
    mov [rdi + 56], rcx
    save_high
    save_xmm
    mov rax, [rdi + 392]
    vmload rax
    pop rdi
    pop_preserved
    ret

# Lets a pending NMI in, on the hypervisor's own IDT (APM 15.17: STGI, one instruction, CLGI).
.global svm_take_pending_nmi
svm_take_pending_nmi:
    stgi
    nop
    clgi
    ret

# An NMI on the hypervisor's own IDT: one that was let in above, or one that strikes while a task
# runs. It is noted in the word above its stack.
.global svm_host_nmi
.balign 16
svm_host_nmi:
    mov qword ptr [rsp + 40], 1
    iretq
