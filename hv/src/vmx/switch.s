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
    push_preserved
    push rdi
    mov eax, 0x6c14                     # host RSP
    vmwrite rax, rsp
    test rsi, rsi                       # the flags outlive the loads
    load_xmm
    mov rax, [rdi]
    load_registers
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
    save_low
    pop rcx
    mov [rdi + 56], rcx
    save_high
    save_xmm
    xor eax, eax
    pop rdi
3:
    pop_preserved
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
