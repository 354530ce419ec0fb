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
    push_preserved
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
    load_registers
    iretq

# From traps.s, on the exceptions' stack: vector, error code, and the five words of the CPU; above
# them the address of the area.
.global task_stopped
.balign 16
task_stopped:
    push rdi
    mov rdi, [rsp + 64]
    mov [rdi], rax
    save_low
    save_high
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
    pop_preserved
    ret
