/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A page of the module's text with nothing else in it: mov $0, %eax; ret. The race probe
 * rewrites the constant.
 */
#include <linux/objtool.h>
#include <asm/nospec-branch.h>

	.section ".text.raced", "ax", @progbits
	.balign 4096
	.globl raced_function
	.type raced_function, @function
raced_function:
	ANNOTATE_NOENDBR
	.byte 0xb8
	.long 0
	ANNOTATE_UNRET_SAFE
	.byte 0xc3
	.balign 4096, 0xcc
	.size raced_function, . - raced_function

	.section .note.GNU-stack, "", @progbits
