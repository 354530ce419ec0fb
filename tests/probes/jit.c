// SPDX-License-Identifier: GPL-2.0
/*
 * JIT spraying: a packet filter whose constants, one behind the other, are code. BPF's compiler puts
 * them into kernel text; a jump to the second byte of its first instruction runs them.
 */
#include <linux/filter.h>

#include "attempt.h"
#include "probes.h"

#define VALUE 0x52415645u
/* Three bytes of code, and `cmp al, ...`, which swallows the next instruction's opcode. */
#define CODE(a, b, c) BPF_STMT(BPF_LD | BPF_IMM, 0x3c000000 | (c) << 16 | (b) << 8 | (a))
#define LOAD_EAX 0xb8
#define NOP 0x90

static struct sock_filter spray[] = {
	CODE(0xb0, VALUE >> 16 & 0xff, NOP), /* mov al, ... */
	CODE(0xb4, VALUE >> 24 & 0xff, NOP), /* mov ah, ... */
	CODE(0xc1, 0xe0, 16), /* shl eax, 16 */
	CODE(0xb0, VALUE & 0xff, NOP),
	CODE(0xb4, VALUE >> 8 & 0xff, NOP),
	CODE(0xc3, NOP, NOP), /* ret */
	BPF_STMT(BPF_RET | BPF_K, 0),
};

static enum result run_spray(struct run *run, const struct bpf_prog *program)
{
	const u8 *code = (const u8 *)program->bpf_func;
	struct call call;

	if (!program->jited)
		return finish(run, UNUSABLE, "the program was not compiled");
	for (u32 at = 0; at + 5 <= program->jited_len; at++) {
		if (code[at] != LOAD_EAX || memcmp(code + at + 1, &spray[0].k, sizeof(spray[0].k)))
			continue;
		call = call_function((void *)code + at + 1);
		if (call.faulted)
			return finish(run, REFUSED, "call of %px faulted", code + at + 1);
		if (call.value != VALUE)
			return finish(run, REFUSED, "call of %px ran nothing", code + at + 1);
		return finish(run, SUCCEEDED, "constants ran at %px", code + at + 1);
	}
	return finish(run, UNUSABLE, "the constants are not in the compiled program");
}

static enum result jit_spray(struct run *run)
{
	struct sock_fprog_kern filter = { .len = ARRAY_SIZE(spray), .filter = spray };
	int *enable = (int *)jit_enable, before = READ_ONCE(*enable);
	struct bpf_prog *program;
	enum result result;
	int error;

	/* Who can write kernel data switches the compiler on. */
	WRITE_ONCE(*enable, 1);
	error = bpf_prog_create(&program, &filter);
	WRITE_ONCE(*enable, before);
	if (error)
		return finish(run, UNUSABLE, "the program was refused: %d", error);
	result = run_spray(run, program);
	bpf_prog_destroy(program);
	return result;
}

const struct probe jit_probes[] = {
	{ "jit-spray", "run constants of a compiled BPF program under jit = \"deny\"", jit_spray },
	{}
};
