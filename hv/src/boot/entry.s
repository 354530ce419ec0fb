# Entry from the boot loader (Multiboot 1, address form, or Multiboot 2) and the way to 64-bit Rust.
#
# State at entry32: 32-bit protected mode, paging off, EAX = magic, EBX = boot information.

.section .multiboot, "a"
.balign 4
multiboot_header:
    .long 0x1badb002
    .long 0x00010003                    # page-aligned modules, memory map, addresses follow
    .long -(0x1badb002 + 0x00010003)
    .long multiboot_header
    .long image_start
    .long data_end
    .long bss_end
    .long entry32

# The loader takes addresses and the entry from the ELF headers. It is not asked to leave the
# firmware's boot services running, so on UEFI machines they have ended at the entry.
.balign 8
multiboot2_header:
    .long 0xe85250d6
    .long 0                             # 32-bit protected mode
    .long multiboot2_header_end - multiboot2_header
    .long -(0xe85250d6 + (multiboot2_header_end - multiboot2_header))
    .word 6, 0                          # modules are to be page-aligned
    .long 8
    .word 0, 0                          # end of tags
    .long 8
multiboot2_header_end:

# Writes ECX entries from EDI on: EAX, then each \step more.
.macro fill_table step
1:  mov [edi], eax
    add edi, 8
    add eax, \step
    loop 1b
.endm

.section .text.entry, "ax"
.code32
.global entry32
entry32:
    cli
    cld
    mov ebp, eax
    mov esi, ebx
    mov edi, offset data_end
    mov ecx, offset bss_end
    sub ecx, edi
    shr ecx, 2
    xor eax, eax
    rep stosd

    # Identity map of the first 4 GiB with 2 MiB leaves, for the boot only; and the same at DIRECT_MAP.
    mov eax, offset boot_pdpt
    or eax, 3
    mov [boot_pml4], eax
    mov [boot_pml4 + 256 * 8], eax      # the pool, where the direct map will have it
    mov eax, offset boot_directories
    or eax, 3
    mov edi, offset boot_pdpt
    mov ecx, 4
    fill_table 4096
    mov edi, offset boot_directories
    mov eax, 0x83
    mov ecx, 2048
    fill_table 0x200000

    # But for the page below the first CPU's stack, so that an overflow is a fault.
    mov ebx, offset boot_stack_guard
    mov ebx, [ebx]
    mov eax, ebx
    and eax, 0xffe00000
    or eax, 3
    mov edi, offset boot_guarded
    mov ecx, 512
    fill_table 4096
    mov edx, ebx
    shr edx, 21
    mov eax, offset boot_guarded
    or eax, 3
    mov [boot_directories + edx * 8], eax
    shr ebx, 12
    and ebx, 511
    mov dword ptr [boot_guarded + ebx * 8], 0

    mov esp, offset boot_stack_pointer
    mov esp, [esp]
    call enable_long_mode
    lgdt [boot_gdt_pointer]
    .byte 0xea                          # far jump
    .long entry64
    .word 8

# Turns on long mode with the boot tables. Clobbers EAX, ECX, EDX. Also used by the other CPUs.
.global enable_long_mode
enable_long_mode:
    mov eax, offset boot_pml4
    mov cr3, eax
    mov eax, 0x620                      # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, ~1                         # no SCE: tasks have no SYSCALL, whose target is the guest's
    or eax, 0x900                       # LME, NXE
    wrmsr
    mov eax, 0x80010023                 # PG, WP, NE, MP, PE; caches on
    mov cr0, eax
    ret

.code64
entry64:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov gs, ax
    mov rsp, [rip + boot_stack_pointer]
    mov edi, ebp
    mov esi, esi
    xor ebp, ebp
    call boot_cpu_main
    ud2

# The other CPUs arrive here in 64-bit mode; `next_stack` was set for the one that starts now.
.global application_entry64
application_entry64:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov gs, ax
    mov rsp, [rip + next_stack]
    xor ebp, ebp
    call application_cpu_main
    ud2

.section .rodata.boot, "a"
.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # 0x08: 64-bit code
    .quad 0x00cf93000000ffff            # 0x10: data
    .quad 0x00cf9b000000ffff            # 0x18: 32-bit code, for the trampoline
.global boot_gdt_pointer
boot_gdt_pointer:
    .word 31
    .quad boot_gdt

# Real-mode code that is copied below 1 MiB and started by SIPI. Position: TRAMPOLINE.
.section .rodata.trampoline, "a"
.global trampoline_start, trampoline_end
.set TRAMPOLINE, 0x8000
trampoline_start:
.code16
    cli
    cld
    xor ax, ax
    mov ds, ax
    # lgdtl [absolute address]; LLVM's parser takes no difference of symbols here.
    .byte 0x66, 0x0f, 0x01, 0x16
    .word TRAMPOLINE + (trampoline_gdt_pointer - trampoline_start)
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea                    # far jump, 32-bit offset
    .long TRAMPOLINE + (trampoline32 - trampoline_start)
    .word 0x18
.code32
trampoline32:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, offset next_stack
    mov esp, [esp]
    mov eax, offset enable_long_mode
    call eax
    .byte 0xea
    .long application_entry64
    .word 8
.balign 8
trampoline_gdt_pointer:
    .word 31
    .long boot_gdt
trampoline_end:
.code64

.section .bss.boot, "aw", @nobits
.balign 4096
.global boot_pml4, boot_tables_end
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_directories:
    .skip 4 * 4096
boot_guarded:
    .skip 4096
boot_tables_end:
