/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Single instructions that may fault. Each function returns whether the instruction completed;
 * the exception table brings a fault back here.
 */
#ifndef RAVELIN_ATTEMPT_H
#define RAVELIN_ATTEMPT_H

#include <linux/types.h>
#include <asm/processor.h>
#include <asm/asm.h>

/* ATTEMPT(instruction, (outputs), (inputs)): every use clobbers memory. */
#define UNWRAP(...) __VA_ARGS__
#define ATTEMPT(instruction, outputs, inputs)                                               \
	({                                                                                  \
		u32 faulted_ = 1;                                                           \
		asm volatile("1: " instruction "\n\t"                                       \
			     "xorl %[faulted], %[faulted]\n"                                \
			     "2:\n" _ASM_EXTABLE(1b, 2b)                                    \
			     : [faulted] "+&r"(faulted_) UNWRAP outputs                     \
			     : UNWRAP inputs                                                \
			     : "memory", "cc");                                             \
		!faulted_;                                                                  \
	})

static inline bool attempt_write8(void *at, u8 value)
{
	return ATTEMPT("movb %b[value], (%[at])", (), ([at] "r"(at), [value] "q"(value)));
}

static inline bool attempt_write32(void *at, u32 value)
{
	return ATTEMPT("movl %k[value], (%[at])", (), ([at] "r"(at), [value] "r"(value)));
}

static inline bool attempt_read64(const void *at, u64 *value)
{
	u64 read = 0;
	bool done = ATTEMPT("movq (%[at]), %[read]", (, [read] "+&r"(read)), ([at] "r"(at)));

	*value = read;
	return done;
}

static inline bool attempt_write64(void *at, u64 value)
{
	return ATTEMPT("movq %[value], (%[at])", (), ([at] "r"(at), [value] "r"(value)));
}

static inline bool attempt_cr0(u64 value)
{
	return ATTEMPT("movq %[value], %%cr0", (), ([value] "r"(value)));
}

static inline bool attempt_cr4(u64 value)
{
	return ATTEMPT("movq %[value], %%cr4", (), ([value] "r"(value)));
}

static inline bool attempt_rdmsr(u32 msr, u64 *value)
{
	u32 low = 0, high = 0;
	bool done = ATTEMPT("rdmsr", (, "+a"(low), "+d"(high)), ("c"(msr)));

	*value = (u64)high << 32 | low;
	return done;
}

static inline bool attempt_wrmsr(u32 msr, u64 value)
{
	return ATTEMPT("wrmsr", (), ("c"(msr), "a"((u32)value), "d"((u32)(value >> 32))));
}

static inline u64 raw_cr0(void)
{
	u64 value;

	asm volatile("movq %%cr0, %0" : "=r"(value));
	return value;
}

static inline u64 raw_cr3(void)
{
	u64 value;

	asm volatile("movq %%cr3, %0" : "=r"(value));
	return value;
}

static inline u64 raw_cr4(void)
{
	u64 value;

	asm volatile("movq %%cr4, %0" : "=r"(value));
	return value;
}

/* The counter that tells where the hypervisor's memory begins. */
#define OWN_MEMORY 17

/* Counter `number` of the hypervisor; false without one (the hypercall is then undefined). */
static inline bool hypervisor_counter(u64 number, u64 *value)
{
	u64 answer = 0x52564c4e00000000;
	bool done;

	if (boot_cpu_data.x86_vendor == X86_VENDOR_INTEL)
		done = ATTEMPT("vmcall", (, "+a"(answer)), ("b"(number)));
	else
		done = ATTEMPT("vmmcall", (, "+a"(answer)), ("b"(number)));
	if (!done)
		return false;
	*value = answer;
	return answer != ~0ull; /* it knows no such counter */
}

#endif
