# The way to a task and back. A task runs at CPL 3 in a page table that maps of the hypervisor only
# its image, where this code, the stacks and the area are.
#
# task_enter(rdi = Area): runs the task until an exception, its call or an interrupt stops it.
# Area, which area.rs knows: 16 general registers in the order of their encoding; RIP, RFLAGS, CR3;
# vector, error code and CR2 of what stopped it; RSP and CR3 of the hypervisor; the x87 and SSE state
# of the task, and what the guest had there.

.section .text.task, "ax"
.global task_enter
.balign 64
task_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rdi + 176], rsp
    mov rax, cr3
    mov [rdi + 184], rax
    fxsave64 [rdi + 704]
    fxrstor64 [rdi + 192]
    push 0x2b                           # data of CPL 3
    push [rdi + 32]
    push [rdi + 136]
    push 0x33                           # code of CPL 3
    push [rdi + 128]
    mov rax, [rdi + 144]
    mov cr3, rax
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
    iretq

# From traps.s, on the exceptions' stack: vector, error code, and the five words of the CPU; above
# them the address of the area.
.global task_stopped
.balign 16
task_stopped:
    push rdi
    mov rdi, [rsp + 64]
    mov [rdi], rax
    mov [rdi + 8], rcx
    mov [rdi + 16], rdx
    mov [rdi + 24], rbx
    mov [rdi + 40], rbp
    mov [rdi + 48], rsi
    mov [rdi + 64], r8
    mov [rdi + 72], r9
    mov [rdi + 80], r10
    mov [rdi + 88], r11
    mov [rdi + 96], r12
    mov [rdi + 104], r13
    mov [rdi + 112], r14
    mov [rdi + 120], r15
    pop [rdi + 56]
    pop [rdi + 152]                     # vector
    pop [rdi + 160]                     # error code
    pop [rdi + 128]                     # RIP
    mov rax, [rsp + 8]
    mov [rdi + 136], rax                # RFLAGS
    mov rax, [rsp + 16]
    mov [rdi + 32], rax                 # RSP
    mov rax, cr2
    mov [rdi + 168], rax
    mov rax, [rdi + 184]
    mov cr3, rax
    fxsave64 [rdi + 192]
    fxrstor64 [rdi + 704]
    mov rsp, [rdi + 176]
    push 2                              # none of the task's flags: AC and DF would matter
    popfq
    mov eax, 0x10
    mov ss, eax
    mov ds, eax
    mov es, eax
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
