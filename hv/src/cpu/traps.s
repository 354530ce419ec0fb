# Exceptions and interrupts. An exception of the hypervisor itself is a bug of its own and ends the
# machine with a report. One of a task, or an interrupt that arrives while a task runs, ends the
# task's turn: `task_enter` (task/switch.s) returns. Every vector has an IST stack: the red zone is
# live when an exception strikes. NMIs have a handler by the vendor.

.section .text.traps, "ax"
.altmacro

.macro trap_stub vector
.balign 16
    push \vector
    jmp trap_common
.endm

.balign 16
.global trap_stubs
trap_stubs:
.set i, 0
.rept 256
    trap_stub %i
    .set i, i + 1
.endr

# Which vectors come with an error code cannot be told from their numbers: an interrupt controller
# can be set to any number from 16 on. The CPU aligns the stack before it pushes five words or six,
# so the stack pointer tells.
.balign 16
trap_common:
    test spl, 8
    jnz 1f
    push [rsp]
    mov qword ptr [rsp + 8], 0
1:  test byte ptr [rsp + 24], 3         # the CPL in CS
    jnz task_stopped
    mov rdi, [rsp]
    mov rsi, [rsp + 8]
    mov rdx, [rsp + 16]
    mov rcx, cr2
    cld
    and rsp, -16
    call trap_fatal
    ud2
