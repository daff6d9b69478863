# The BIOS path of the flashable image: 512 bytes of boot sector and a second stage behind it, one flat piece of
# real-mode code for address 0x7c00. The image builder copies it out of the kernel's file: the first 440 bytes into
# sector 0, the rest to the start of the BIOS boot partition; the kernel itself never runs it. It assumes sectors of
# 512 bytes, as every BIOS that reads disks by number does.
#
# The second stage reads the command-line file off the FAT partition, the kernel to 2 MiB, asks for the memory map, and
# enters the kernel as a PVH loader would: protected mode, %ebx = start info.

.section .bios, "a", @progbits
.code16
.set ORG, 0x7c00
.set MAP, 0x1000                        # memory map, 24 bytes an entry
.set MAP_ENTRIES_MAX, 128
.set LINE, 0x2000                       # command line, 4095 bytes and a zero
.set START_INFO, 0x3800
.set SECTOR, 0x4000                     # boot sector of the FAT partition
.set DIRECTORY, 0x4200                  # one sector of its root directory
.set CHUNK, 0x10000                     # kernel pieces on their way up
.set CHUNK_SECTORS, 64
.set KERNEL, 0x200000
.set STAGE_2_SECTORS, 8

.global bios_start
bios_start:
    cli
    cld
    xorw    %ax, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movw    %ax, %ss
    movw    $ORG, %sp
    sti
    movb    %dl, ORG + (drive - bios_start)
    movw    $(ORG + (packet - bios_start)), %si
    movb    $0x42, %ah
    int     $0x13
    jc      1f
    ljmp    $0, $(ORG + (stage_2 - bios_start))
1:  movw    $(ORG + (no_disk_text - bios_start)), %si
    # Falls through.

# Prints the text at %si and stops.
fail:
    lodsb
    testb   %al, %al
    jz      2f
    movb    $0x0e, %ah
    movw    $7, %bx
    int     $0x10
    movw    $0x3f8, %dx
    outb    %al, %dx
    jmp     fail
2:  hlt
    jmp     2b

no_disk_text:
    .asciz  "Moraine: cannot read the disk\r\n"
drive:
    .byte   0
.balign 4
packet:
    .byte   16, 0
packet_count:
    .word   STAGE_2_SECTORS
packet_offset:
    .word   ORG + 512
packet_segment:
    .word   0
packet_sector:                          # the image builder puts the BIOS boot partition's first sector here
.global bios_stage_2_sector
bios_stage_2_sector:
    .quad   0

.org 440
    .org    512

# What the image builder fills in, right at the start of the second stage.
stage_2_fields:
    .ascii  "MORAINE2"
kernel_sector:
    .long   0
kernel_sectors:
    .long   0
kernel_bytes:                           # of the file's part; from there to kernel_end is zeroed
    .long   0
kernel_end:
    .long   0
fat_sector:
    .long   0
    .long   0

stage_2:
    # Address line 20, by firmware and by the chip set's port.
    movw    $0x2401, %ax
    int     $0x15
    inb     $0x92, %al
    orb     $2, %al
    andb    $0xfe, %al
    outb    %al, $0x92

    # The memory map.
    xorl    %ebx, %ebx
    movw    $MAP, %di
    xorl    %ebp, %ebp
1:  movl    $0xe820, %eax
    movl    $0x534d4150, %edx
    movl    $20, %ecx
    int     $0x15
    jc      2f
    cmpl    $0x534d4150, %eax
    jne     2f
    movl    $0, 20(%di)
    addw    $24, %di
    incl    %ebp
    cmpl    $MAP_ENTRIES_MAX, %ebp
    jae     2f
    testl   %ebx, %ebx
    jnz     1b
2:  movw    $(ORG + (no_map_text - bios_start)), %si
    testl   %ebp, %ebp
    jz      fail
    movl    %ebp, ORG + (map_entries - bios_start)

    call    read_line

    # The kernel, piece by piece.
    movl    ORG + (kernel_sector - bios_start), %eax
    movl    ORG + (kernel_sectors - bios_start), %ebp
3:  testl   %ebp, %ebp
    jz      5f
    movl    $CHUNK_SECTORS, %ecx
    cmpl    %ecx, %ebp
    jae     4f
    movl    %ebp, %ecx
4:  subl    %ecx, %ebp
    movw    $(CHUNK >> 4), %dx
    xorw    %di, %di
    pushl   %eax
    pushl   %ecx
    call    read
    call    copy_up
    popl    %ecx
    popl    %eax
    addl    %ecx, %eax
    jmp     3b

5:  cli
    lgdtl   ORG + (gdt_pointer - bios_start)
    movl    %cr0, %eax
    orl     $1, %eax
    movl    %eax, %cr0
    ljmp    $8, $(ORG + (enter - bios_start))

.code32
enter:
    movl    $16, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    movl    $ORG, %esp
    movl    $KERNEL, %edi
    movl    ORG + (kernel_end - bios_start), %ecx
    movl    ORG + (kernel_bytes - bios_start), %eax
    addl    %eax, %edi
    subl    %eax, %ecx
    xorl    %eax, %eax
    rep stosb
    movl    $START_INFO, %ebx
    movl    %ebx, %edi
    movl    $14, %ecx
    rep stosl
    movl    $0x336ec578, (%ebx)         # magic
    movl    $1, 4(%ebx)                 # version
    movl    $0x80000000, 8(%ebx)        # flag: by our own BIOS stage
    movl    $LINE, 24(%ebx)
    movl    $MAP, 40(%ebx)
    movl    ORG + (map_entries - bios_start), %eax
    movl    %eax, 48(%ebx)
    movl    $KERNEL, %eax
    jmp     *%eax
.code16

# Reads %cx sectors from sector %eax on to %dx:%di; stops the machine if that fails.
read:
    movw    %cx, ORG + (packet_count - bios_start)
    movw    %di, ORG + (packet_offset - bios_start)
    movw    %dx, ORG + (packet_segment - bios_start)
    movl    %eax, ORG + (packet_sector - bios_start)
    movl    $0, ORG + (packet_sector - bios_start) + 4
    pushal
    movb    ORG + (drive - bios_start), %dl
    movw    $(ORG + (packet - bios_start)), %si
    movb    $0x42, %ah
    int     $0x13
    popal
    jnc     6f
    movw    $(ORG + (no_disk_text - bios_start)), %si
    jmp     fail
6:  ret

# Copies a chunk to where the last one ended, by way of protected mode. Changes %eax, %ecx, %esi, %edi.
copy_up:
    cli
    lgdtl   ORG + (gdt_pointer - bios_start)
    movl    %cr0, %eax
    orl     $1, %eax
    movl    %eax, %cr0
    ljmp    $8, $(ORG + (7f - bios_start))
.code32
7:  movl    $16, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    $CHUNK, %esi
    movl    ORG + (copy_to - bios_start), %edi
    movl    $(CHUNK_SECTORS * 128), %ecx
    rep movsl
    movl    %edi, ORG + (copy_to - bios_start)
    ljmpl   $24, $(ORG + (8f - bios_start))
.code16
8:  movw    $32, %ax
    movw    %ax, %ds
    movw    %ax, %es
    movl    %cr0, %eax
    andl    $~1, %eax
    movl    %eax, %cr0
    ljmp    $0, $(ORG + (9f - bios_start))
9:  xorw    %ax, %ax
    movw    %ax, %ds
    movw    %ax, %es
    sti
    ret

# Reads MORAINE.TXT off the root directory of the FAT16 partition to LINE; an empty line if it is not there. The file
# is one cluster at most (4 KiB), so its first cluster is all of it.
read_line:
    movb    $0, LINE
    movl    ORG + (fat_sector - bios_start), %eax
    testl   %eax, %eax
    jz      15f
    movw    $1, %cx
    xorw    %dx, %dx
    movw    $SECTOR, %di
    call    read
    movzwl  SECTOR + 14, %ecx           # reserved sectors
    addl    %ecx, %eax
    movzbl  SECTOR + 16, %ecx           # tables
    movzwl  SECTOR + 22, %edx           # sectors of each
    imull   %edx, %ecx
    addl    %ecx, %eax                  # the root directory's first sector
    movzwl  SECTOR + 17, %ecx           # its entries
    shrl    $4, %ecx
    movl    %eax, %ebp
    addl    %ecx, %ebp                  # the first sector of data
10: testl   %ecx, %ecx
    jz      15f
    pushl   %ecx
    movw    $1, %cx
    xorw    %dx, %dx
    movw    $DIRECTORY, %di
    call    read
    movw    $DIRECTORY, %bx
11: movw    %bx, %di
    movw    $(ORG + (file_name - bios_start)), %si
    movw    $11, %cx
    repe cmpsb
    je      12f
    addw    $32, %bx
    cmpw    $(DIRECTORY + 512), %bx
    jb      11b
    popl    %ecx
    decl    %ecx
    incl    %eax
    jmp     10b
12: popl    %ecx
    movzwl  26(%bx), %eax               # first cluster
    subl    $2, %eax
    jb      15f
    movzbl  SECTOR + 13, %ecx           # sectors a cluster
    imull   %ecx, %eax
    addl    %ebp, %eax
    cmpw    $8, %cx
    jbe     13f
    movw    $8, %cx
13: xorw    %dx, %dx
    movw    $LINE, %di
    pushw   %bx
    call    read
    popw    %bx
    movl    28(%bx), %ecx               # length
    cmpl    $4095, %ecx
    jbe     14f
    movl    $4095, %ecx
14: movw    %cx, %bx
    movb    $0, LINE(%bx)
15: ret

no_map_text:
    .asciz  "Moraine: the BIOS has no memory map\r\n"
file_name:
    .ascii  "MORAINE TXT"
.balign 8
map_entries:
    .long   0
copy_to:
    .long   KERNEL
gdt:
    .quad   0
    .quad   0x00cf9b000000ffff          # 32-bit code
    .quad   0x00cf93000000ffff          # 32-bit data
    .quad   0x00009b000000ffff          # 16-bit code
    .quad   0x000093000000ffff          # 16-bit data
gdt_pointer:
    .word   39
    .long   ORG + (gdt - bios_start)

.org 512 + STAGE_2_SECTORS * 512
.global bios_end
bios_end:
.code64
