# The first instructions of a second core: it starts in real mode at the page this is copied to, goes straight to long
# mode with the kernel's page tables, and jumps to Rust with its stack. The kernel fills in the four words at the end.
# Uses absolute addresses of its page, 0x8000.

.section .rodata.core_start, "a"
.set PAGE, 0x8000
.code16
.global core_start
core_start:
    cli
    cld
    xorw    %ax, %ax
    movw    %ax, %ds
    lgdtl   PAGE + (core_gdt_pointer - core_start)
    movl    %cr4, %eax
    orl     $0x620, %eax                # PAE, OSFXSR, OSXMMEXCPT
    movl    %eax, %cr4
    movl    PAGE + (core_tables - core_start), %eax
    movl    %eax, %cr3
    movl    $0xc0000080, %ecx           # EFER, as the first core has it
    movl    PAGE + (core_efer - core_start), %eax
    xorl    %edx, %edx
    wrmsr
    movl    %cr0, %eax
    andl    $~0x6000000c, %eax
    orl     $0x80010023, %eax           # protected mode and paging at once
    movl    %eax, %cr0
    ljmpl   $8, $(PAGE + (1f - core_start))
.code64
1:  movl    $0x10, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    movq    PAGE + (core_stack - core_start), %rsp
    xorl    %ebp, %ebp
    movq    PAGE + (core_rust - core_start), %rax
    call    *%rax
    ud2

.balign 8
core_gdt:
    .quad   0
    .quad   0x00af9b000000ffff
    .quad   0x00cf93000000ffff
core_gdt_pointer:
    .word   23
    .long   PAGE + (core_gdt - core_start)
    .balign 8
.global core_tables
core_tables:
    .quad   0
core_efer:
    .quad   0
core_stack:
    .quad   0
core_rust:
    .quad   0
.global core_start_end
core_start_end:
