/* From the multiboot loader's 32-bit mode to C in ring 3, on the first processor and then on the others.
 *
 * All C code of this guest runs in ring 3 (see README.md, "The bare guest"). Ring 0 has the few lines below: the way
 * there, the return from a sleep, and the way from a processor exception to fault(). Ring 3 may do what it needs: it
 * has the I/O ports (by the map of the TSS: IOPL is not kept under every KVM), all of memory is mapped for it, and
 * interrupts are off until it sleeps. */
#include "layout.h"

/* Selectors. TSS_SELECTOR is that of the first processor; each further one is 16 bytes on. */
#define CODE32 0x08
#define CODE64 0x10
#define DATA 0x18
#define USER_DATA 0x2b
#define USER_CODE64 0x33
#define TSS_SELECTOR 0x40
#define IDT_ENTRIES 0x60
#define USER_FLAGS 0x2 /* interrupts off */
#define IO_MAP_BYTES (0x1000 / 8)
#define PRESENT_WRITE_USER 7
#define LARGE_PAGE 0x80
#define STUB_BYTES 16

	.section .multiboot, "a"
	.balign 4
	.long 0x1badb002, 2, -(0x1badb002 + 2) /* flag 2: with a memory map */

	.text
	.code32
	.globl _start
_start:
	cli
	cld
	movl %ebx, multiboot_info
	movl %eax, multiboot_magic
	/* Ring 0 is interpreted where KVM has no hardware below it: only what must be is done here. */
	movl $PML4, %edi
	xorl %eax, %eax
	movl $(3 * 1024), %ecx
	rep stosl
	movl $(PDPT + PRESENT_WRITE_USER), PML4
	movl $(WS_PDPT + PRESENT_WRITE_USER), PML4 + 8 /* the working set: from 512 GiB on */
	movl $(PDS + PRESENT_WRITE_USER), PDPT
	movl $(PDS + 0x1000 + PRESENT_WRITE_USER), PDPT + 8
	movl $(PDS + 0x2000 + PRESENT_WRITE_USER), PDPT + 16
	movl $(PDS + 0x3000 + PRESENT_WRITE_USER), PDPT + 24
	movl $PDS, %edi
	movl $(LARGE_PAGE + PRESENT_WRITE_USER), %eax
1:	movl %eax, (%edi)
	movl $0, 4(%edi)
	addl $8, %edi
	addl $0x200000, %eax
	jnc 1b /* 4 GiB, one to one: memory, HPET and local APIC */

	movl $idt, %edi
	movl $exceptions, %eax
	movl $32, %ecx
2:	call set_gate
	addl $STUB_BYTES, %eax
	loop 2b
	movl $interrupt, %eax
	movl $(IDT_ENTRIES - 32), %ecx
3:	call set_gate
	loop 3b

	movb $0xff, io_map + IO_MAP_BYTES
	movl $(gdt + TSS_SELECTOR), %edi
	movl $tss, %eax
	movl $(KERNEL_STACKS + KERNEL_STACK_BYTES), %ebx
	movl $MAX_CPUS, %ecx
4:	movl %ebx, 4(%eax) /* rsp0 */
	movl $io_map, %edx
	subl %eax, %edx
	movw %dx, 0x66(%eax)
	addw $IO_MAP_BYTES, %dx
	movw %dx, (%edi) /* limit: with the byte after the map */
	movw %ax, 2(%edi)
	movl %eax, %edx
	shrl $16, %edx
	movb %dl, 4(%edi)
	movb $0x89, 5(%edi)
	movb %dh, 7(%edi)
	addl $16, %edi
	addl $0x68, %eax
	addl $KERNEL_STACK_BYTES, %ebx
	loop 4b

/* The others come here, too. */
enter_long_mode:
	movl $0x620, %eax /* PAE, SSE */
	movl %eax, %cr4
	movl $PML4, %eax
	movl %eax, %cr3
	movl $0xc0000080, %ecx
	rdmsr
	orl $0x100, %eax
	wrmsr
	movl $0x80000033, %eax /* paging, protection, FPU */
	movl %eax, %cr0
	lgdt gdt_pointer
	ljmp $CODE64, $long_mode

/* eax: handler; edi: entry, which moves on. */
set_gate:
	movl %eax, %edx
	movw %ax, (%edi)
	movw $CODE64, 2(%edi)
	movw $0x8e00, %dx
	movl %edx, 4(%edi)
	movl $0, 8(%edi)
	movl $0, 12(%edi)
	addl $16, %edi
	ret

	.code64
long_mode:
	xorl %eax, %eax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %fs
	movw %ax, %gs
	movw $DATA, %ax
	movw %ax, %ss
	lidt idt_pointer
	movl $1, %edi
	lock xaddl %edi, cpus_started /* edi: the number of this processor */
	movl %edi, %eax
	shll $4, %eax
	addl $TSS_SELECTOR, %eax
	ltr %ax
	leal 1(%rdi), %eax
	imull $KERNEL_STACK_BYTES, %eax, %esp
	addl $KERNEL_STACKS, %esp
	imull $USER_STACK_BYTES, %eax, %eax
	addl $(USER_STACKS - 8), %eax /* as after a call: C wants rsp + 8 to be a multiple of 16 */
	pushq $USER_DATA
	pushq %rax
	pushq $USER_FLAGS
	pushq $USER_CODE64
	pushq $cpu_main
	iretq

/* void cpu_sleep(void): until the next interrupt. HLT is not for ring 3: it ends up in exception 13, see there.
 * (INT 0x80 and SYSCALL, the usual ways into ring 0, do not work under every KVM.) */
	.globl cpu_sleep
cpu_sleep:
sleeping:
	hlt
	ret

	.balign STUB_BYTES
exceptions:
vector = 0
	.rept 32
	.balign STUB_BYTES
	.if (vector != 8) && (vector < 10 || vector > 14) && (vector != 17)
	pushq $0
	.endif
	pushq $vector
	jmp exception
vector = vector + 1
	.endr
	.balign STUB_BYTES

exception: /* vector, error, rip, cs, rflags, rsp, ss */
	cmpq $sleeping, 16(%rsp)
	jne 5f
	cmpl $13, (%rsp)
	jne 5f
	/* An interrupt that is pending already ends the HLT at once: STI takes effect after the next instruction. */
	sti
	hlt
	cli
	incq 16(%rsp)
	addq $16, %rsp
	iretq
5:	/* fault(vector, error, rip, address), in ring 3 */
	movq (%rsp), %rdi
	movq 8(%rsp), %rsi
	movq 16(%rsp), %rdx
	movq %cr2, %rcx
	movq $fault, 16(%rsp)
	movq $USER_CODE64, 24(%rsp)
	movq $USER_FLAGS, 32(%rsp)
	movq $USER_DATA, 48(%rsp)
	andq $-16, 40(%rsp)
	subq $8, 40(%rsp)
	addq $16, %rsp
	iretq

interrupt: /* its sense is that it ended the sleep */
	pushq %rax
	movl $0xfee000b0, %eax
	movl $0, (%rax) /* local APIC: end of interrupt */
	popq %rax
	iretq

/* The other processors start here in real mode, after cpus.c has copied it to TRAMPOLINE. */
	.code16
	.globl trampoline, trampoline_end
trampoline:
	cli
	xorw %ax, %ax
	movw %ax, %ds
	lgdtl TRAMPOLINE + (6f - trampoline)
	movl %cr0, %eax
	orb $1, %al
	movl %eax, %cr0
	ljmpl $CODE32, $protected_mode
	.balign 4
6:	.word gdt_end - gdt - 1
	.long gdt
trampoline_end:

	.code32
protected_mode:
	movw $DATA, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	jmp enter_long_mode

	.data
	.balign 16
gdt:
	.quad 0
	.quad 0x00cf9a000000ffff /* CODE32 */
	.quad 0x00af9a000000ffff /* CODE64 */
	.quad 0x00cf92000000ffff /* DATA */
	.quad 0
	.quad 0x00cff2000000ffff /* USER_DATA */
	.quad 0x00affa000000ffff /* USER_CODE64 */
	.quad 0
	.skip 16 * MAX_CPUS
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.quad gdt
idt_pointer:
	.word IDT_ENTRIES * 16 - 1
	.quad idt

	.bss
	.balign 16
idt:	.skip IDT_ENTRIES * 16
tss:	.skip 0x68 * MAX_CPUS
io_map:	.skip IO_MAP_BYTES + 1 /* shared by all: zeros, every port is allowed */
	.globl multiboot_info, multiboot_magic, cpus_started
multiboot_info: .skip 4
multiboot_magic: .skip 4
cpus_started: .skip 4
	.section .note.GNU-stack, "", @progbits
