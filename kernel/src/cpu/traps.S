# First instructions of every exception and interrupt. AT&T syntax.
#
# Interrupts only count: the handler is a dozen integer instructions which note the vector, tell the interrupt
# controller and return, so that there is no vector state to save. What the interrupt means is the reactor's business.
# Exceptions end in Rust and never return.

.section .text.traps, "ax", @progbits
.code64

.global irq_entries
.balign 16
irq_entries:
.set vector, 32
.rept 223
    .balign 16
    pushq   $vector
    jmp     irq_common
    .set vector, vector + 1
.endr
    .balign 16
spurious_entry:                         # vector 255 is never acknowledged
    iretq

irq_common:
    pushq   %rax
    pushq   %rcx
    movl    16(%rsp), %ecx
    leaq    IRQ_COUNTS(%rip), %rax
    lock incl (%rax, %rcx, 4)
    movq    APIC_EOI(%rip), %rax
    testq   %rax, %rax
    jz      1f
    movl    $0, (%rax)
    popq    %rcx
    popq    %rax
    addq    $8, %rsp
    iretq
1:  pushq   %rdx                        # x2APIC: acknowledge by a model-specific register
    xorl    %eax, %eax
    xorl    %edx, %edx
    movl    $0x80b, %ecx
    wrmsr
    popq    %rdx
    popq    %rcx
    popq    %rax
    addq    $8, %rsp
    iretq

.global exception_entries
.balign 16
exception_entries:
.set vector, 0
.rept 32
    .balign 16
    # Exceptions 8, 10 to 14, 17, 21, 29 and 30 push an error code; the others get a zero.
    .if (0x60227d00 >> vector) & 1
    .else
    pushq   $0
    .endif
    pushq   $vector
    jmp     exception_common
    .set vector, vector + 1
.endr

exception_common:
    pushq   %r15
    pushq   %r14
    pushq   %r13
    pushq   %r12
    pushq   %r11
    pushq   %r10
    pushq   %r9
    pushq   %r8
    pushq   %rbp
    pushq   %rdi
    pushq   %rsi
    pushq   %rdx
    pushq   %rcx
    pushq   %rbx
    pushq   %rax
    cld
    movq    %rsp, %rdi
    andq    $-16, %rsp
    call    exception
    ud2
