# From PVH's 32-bit protected mode to Rust at CPL 3, in about a hundred instructions.
#
# On the local software KVM privileged code is emulated at 1 MIPS while CPL 3 runs natively, so nothing is computed here:
# page tables are data of the image, and whatever needs a loop happens after the iretq. There is no IDT: interrupts stay off
# for good, and a fault is a triple fault, which the VMM reports.

.macro keep place, leaf, subleaf
    mov eax, \leaf
    mov ecx, \subleaf
    cpuid
    mov [cpuid_answers + \place * 16], eax
    mov [cpuid_answers + \place * 16 + 4], ebx
    mov [cpuid_answers + \place * 16 + 8], ecx
    mov [cpuid_answers + \place * 16 + 12], edx
.endm

.section .note.pvh, "a", @note
    .align 4
    .long 4                     # name
    .long 8                     # descriptor
    .long 18                    # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

.section .boot, "ax"
.code32
.global pvh_start
pvh_start:
    cli
    cld
    mov edi, ebx                # hvm_start_info
    lgdt [gdt_pointer]
    mov eax, cr4
    or eax, 0x620               # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset page_map
    mov cr3, eax
    mov ecx, 0xc0000080         # EFER
    rdmsr
    or eax, 0x100               # LME
    wrmsr
    mov eax, cr0
    and eax, 0xfffffff3         # EM and TS off
    or eax, 0x80000003          # PG, MP, PE
    mov cr0, eax
    .byte 0xea                  # far jump to 64-bit code
    .long long_mode
    .word 0x08

.code64
long_mode:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    lea rsp, [stack_top]
    mov r12d, edi               # cpuid keeps r12 to r15

    lea rax, [task_state]       # the TSS's address, in the pieces its descriptor wants
    lea rdx, [gdt_task]
    mov [rdx + 2], ax
    shr rax, 16
    mov [rdx + 4], al
    mov [rdx + 7], ah
    mov ax, 0x28
    ltr ax

    xor r13d, r13d              # kHz that the VMM declares, or 0
    xor r14d, r14d              # whether KVM fills in pvclock
    mov eax, 1
    cpuid
    bt ecx, 31                  # under a hypervisor?
    jnc 3f
    mov eax, 0x40000000
    cpuid
    mov r15d, eax
    cmp ebx, 0x4b4d564b         # "KVMK"
    jne 3f
    mov eax, 0x40000001
    cpuid
    bt eax, 3                   # the clock's newer MSRs
    jnc 2f
    lea rax, [pvclock]
    or eax, 1
    xor edx, edx
    mov ecx, 0x4b564d01         # MSR_KVM_SYSTEM_TIME_NEW
    wrmsr
    mov r14d, 1
2:  cmp r15d, 0x40000010
    jb 3f
    mov eax, 0x40000010
    cpuid
    mov r13d, eax

3:  keep 0, 0x1, 0              # CPUID is the machine's only while the VMM emulates it: a processor that runs CPL 3 by itself answers as its host
    keep 1, 0x7, 0
    keep 2, 0xd, 0
    keep 3, 0xd, 1
    keep 4, 0x80000001, 0
    keep 5, 0x80000008, 0
    keep 6, 0x40000001, 0

    mov eax, 0x1b
    mov ds, eax
    mov es, eax
    push 0x1b                   # ss
    lea rax, [stack_top]
    push rax
    push 0x3002                 # rflags: interrupts off, IOPL 3 for those who do not honour the TSS
    push 0x23                   # cs
    lea rax, [user_mode]
    push rax
    iretq

user_mode:
    mov edi, r12d
    mov esi, r13d
    mov edx, r14d
    xor ebp, ebp
    call guest_main
    ud2

.section .tables, "aw"
    .align 4096
page_map:                       # everything is mapped at its own address, user, writable, accessed and dirty already set
    .quad page_pointers + 0x67
    .fill 511, 8, 0
page_pointers:
    .set index, 0
    .rept 32
    .quad page_directories + index * 4096 + 0x67
    .set index, index + 1
    .endr
    .fill 480, 8, 0
page_directories:               # 32 GiB in 2 MiB pages
    .set index, 0
    .rept 32 * 512
    .quad index * 0x200000 + 0xe7
    .set index, index + 1
    .endr

    .align 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 0x08 code, CPL 0, 64 bit
    .quad 0x00cf93000000ffff    # 0x10 data, CPL 0
    .quad 0x00cff3000000ffff    # 0x1b data, CPL 3
    .quad 0x00affb000000ffff    # 0x23 code, CPL 3, 64 bit
gdt_task:                       # 0x28 TSS, its limit covers the I/O bitmap
    .word 104 + 8192
    .word 0
    .byte 0
    .byte 0x89
    .byte 0
    .byte 0
    .quad 0
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .align 16
task_state:
    .fill 102, 1, 0
    .word 104                   # where the bitmap begins
    .fill 8192, 1, 0            # every port is open to CPL 3
    .byte 0xff

.section .bss
    .align 64
.global pvclock
pvclock:
    .skip 64
.global cpuid_answers
cpuid_answers:
    .skip 7 * 16
    .align 4096
    .skip 65536
stack_top:
