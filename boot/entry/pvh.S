# The PVH entry: 32-bit protected mode, paging off, %ebx = the start-info page. QEMU's -kernel comes here, and so does
# the BIOS stage, which builds a start-info page of its own. Leaves for 64-bit Rust with the first 4 GiB mapped
# one to one by 2 MiB pages (the kernel makes its real tables later).
#
# Everything is addressed relative to %ebp, because the image is position-independent. A word of low memory serves as
# the one stack slot that finding our own address costs; it is put back.

.section .boot.entry, "ax"
.code32
.global pvh_entry
pvh_entry:
    cli
    cld
    movl    0x7ff8, %edx
    movl    $0x7ffc, %esp
    call    1f
1:  popl    %ebp
    movl    %edx, 0x7ff8
    leal    (boot_stack_top - 1b)(%ebp), %esp

    # Long mode is the one thing that must be checked before Rust can run at all.
    movl    %ebx, %edi
    movl    $0x80000000, %eax
    cpuid
    cmpl    $0x80000001, %eax
    jb      no_long_mode
    movl    $0x80000001, %eax
    cpuid
    testl   $(1 << 29), %edx
    jz      no_long_mode
    movl    %edx, %esi                  # bit 20: no-execute pages

    # Page tables: one PML4 and one PDPT entry each for four directories of 512 large pages.
    leal    (boot_tables - 1b)(%ebp), %eax
    leal    0x1003(%eax), %ecx
    movl    %ecx, (%eax)
    leal    0x1000(%eax), %edx
    leal    0x2003(%eax), %ecx
    movl    $4, %ebx
2:  movl    %ecx, (%edx)
    addl    $0x1000, %ecx
    addl    $8, %edx
    decl    %ebx
    jnz     2b
    leal    0x2000(%eax), %edx
    movl    $0x83, %ecx
    movl    $2048, %ebx
3:  movl    %ecx, (%edx)
    addl    $0x200000, %ecx
    addl    $8, %edx
    decl    %ebx
    jnz     3b

    movl    %eax, %cr3
    movl    %cr4, %eax
    orl     $0x620, %eax                # PAE, OSFXSR, OSXMMEXCPT
    movl    %eax, %cr4
    movl    $0xc0000080, %ecx           # EFER: long mode, no-execute where there is one
    rdmsr
    orl     $0x100, %eax
    testl   $(1 << 20), %esi
    jz      4f
    orl     $0x800, %eax
4:  wrmsr
    movl    %cr0, %eax
    andl    $~0x6000000c, %eax          # caches on, no x87 emulation, no task-switch trap
    orl     $0x80010022, %eax           # paging, write-protect, native x87 errors, monitor coprocessor
    movl    %eax, %cr0

    leal    (boot_gdt - 1b)(%ebp), %eax
    leal    (boot_gdt_pointer - 1b)(%ebp), %ecx
    movl    %eax, 2(%ecx)
    lgdt    (%ecx)
    leal    (5f - 1b)(%ebp), %eax
    pushl   $8
    pushl   %eax
    lret

no_long_mode:
    leal    (old_cpu_text - 1b)(%ebp), %esi
    movl    $0xb8000, %edi
    movb    $0x4f, %ah
6:  movb    (%esi), %al
    testb   %al, %al
    jz      7f
    movw    %ax, (%edi)
    addl    $2, %edi
    movw    $0x3f8, %dx
    outb    %al, %dx
    incl    %esi
    jmp     6b
7:  hlt
    jmp     7b
old_cpu_text:
    .asciz  "Moraine needs a 64-bit x86 processor (x86-64-v2).\r\n"

.code64
5:  movl    $0x10, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    xorl    %eax, %eax
    movl    %eax, %fs
    movl    %eax, %gs
    movl    %edi, %r12d
    call    relocate
    movl    %r12d, %edi
    leaq    boot_stack_top(%rip), %rsp
    xorl    %ebp, %ebp
    call    pvh_main
    ud2

# Applies the image's R_X86_64_RELATIVE entries for the address it runs at. Uses rax, rcx, rdx, rsi.
.global relocate
relocate:
    leaq    image_start(%rip), %rdx
    subq    $0x200000, %rdx             # load address minus link address
    leaq    rela_start(%rip), %rsi
    leaq    rela_end(%rip), %rcx
1:  cmpq    %rcx, %rsi
    jae     2f
    movq    (%rsi), %rax
    pushq   16(%rsi)
    addq    %rdx, (%rsp)
    popq    (%rax, %rdx)
    addq    $24, %rsi
    jmp     1b
2:  ret

.section .data.boot_gdt, "aw"
.balign 16
boot_gdt:
    .quad   0
    .quad   0x00af9b000000ffff          # 64-bit code
    .quad   0x00cf93000000ffff          # data
boot_gdt_pointer:
    .word   23
    .quad   0

.section .bss.boot, "aw", @nobits
.balign 4096
.global boot_tables
boot_tables:
    .skip   6 * 4096
.global boot_stack
boot_stack:
    .skip   4096                        # guard page: unmapped once the kernel has its own tables
    .skip   256 * 1024
.global boot_stack_top
boot_stack_top:
