# Exceptions taken by the hypervisor itself. All but NMI, whose handler is
# the vendor's, are its own bugs and end the machine with a report. Every vector has an IST stack: the red zone is live when an exception strikes.

.section .text.traps, "ax"
.altmacro

.macro trap_stub vector
.balign 16
    .if (\vector != 8) && (\vector < 10 || \vector > 14) && (\vector != 17) && (\vector != 21) && (\vector != 29) && (\vector != 30)
    push 0
    .endif
    push \vector
    jmp trap_common
.endm

.balign 16
.global trap_stubs
trap_stubs:
.set i, 0
.rept 32
    trap_stub %i
    .set i, i + 1
.endr

trap_common:
    mov rdi, [rsp]
    mov rsi, [rsp + 8]
    mov rdx, [rsp + 16]
    mov rcx, cr2
    cld
    call trap_fatal
    ud2
