# The UEFI entry: 64-bit, the firmware's page tables and stack; %rcx = image handle, %rdx = system table. The image may
# be loaded anywhere, so it relocates itself first, then calls Rust in the same (Microsoft) calling convention.

.section .boot.entry, "ax"
.code64
.global uefi_entry
uefi_entry:
    pushq   %rcx
    pushq   %rdx
    pushq   %rsi
    subq    $32, %rsp
    movq    %cr4, %rax
    orq     $0x600, %rax                # OSFXSR, OSXMMEXCPT: firmware sets them, make sure
    movq    %rax, %cr4
    call    relocate
    movq    40(%rsp), %rdx
    movq    48(%rsp), %rcx
    call    uefi_main
    addq    $32, %rsp
    popq    %rsi
    popq    %rdx
    popq    %rcx
    ret
