/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A page of the module's text with nothing else in it: mov $0x52415645, %eax; ret. Nobody needs to
 * read it.
 */
#include <linux/objtool.h>
#include <asm/nospec-branch.h>

	.section ".text.unread", "ax", @progbits
	.balign 4096
	.globl unread_function
	.type unread_function, @function
unread_function:
	ANNOTATE_NOENDBR
	.byte 0xb8
	.long 0x52415645
	ANNOTATE_UNRET_SAFE
	.byte 0xc3
	.balign 4096, 0xcc
	.size unread_function, . - unread_function

	.section .note.GNU-stack, "", @progbits
