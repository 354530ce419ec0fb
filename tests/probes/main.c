// SPDX-License-Identifier: GPL-2.0
/*
 * Attacks on the running kernel, for a test of what stops them. Never load this on a machine
 * that matters.
 *
 * /proc/ravelin_probes/list   name, tab, description; one line per probe that applies here
 * /proc/ravelin_probes/denied the same for those that only a stricter policy refuses
 * /proc/ravelin_probes/run    write "name user-page", read "name, tab, result, tab, detail"
 * /proc/ravelin_probes/state  read "state, tab, kept or lost, tab, detail": no attack, a check
 *                             that the registers of this CPU survive what a hypervisor does
 * /proc/ravelin_probes/heki   read: Heki's hypercalls, one line per case; see heki.c
 *                             write before: how many random requests each CPU makes
 * /proc/ravelin_probes/restore read: attacks on what requests protect, "name, tab, open or
 *                             protected"; write before: "ask" or "restore"; see restore.c
 * /proc/ravelin_probes/kexec  any write switches the loading of kernels on again
 * /proc/ravelin_probes/off    any write powers off at once, even if other CPUs are dead
 */
#include <linux/cpumask.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "probes.h"

unsigned long stext, etext, rodata, ro_after_init, jump_start, jump_end;
module_param(stext, ulong, 0);
MODULE_PARM_DESC(stext, "address of _stext");
module_param(etext, ulong, 0);
MODULE_PARM_DESC(etext, "address of _etext");
module_param(rodata, ulong, 0);
MODULE_PARM_DESC(rodata, "address of a byte of read-only data");
module_param(ro_after_init, ulong, 0);
MODULE_PARM_DESC(ro_after_init, "address of a flag that is read-only after init");
module_param(jump_start, ulong, 0);
MODULE_PARM_DESC(jump_start, "address of __start___jump_table");
module_param(jump_end, ulong, 0);
MODULE_PARM_DESC(jump_end, "address of __stop___jump_table");

unsigned long call_start, call_end, stats_key, call_key, jit_enable;
static unsigned long kexec_disabled;
module_param(call_start, ulong, 0);
MODULE_PARM_DESC(call_start, "address of __start_static_call_sites");
module_param(call_end, ulong, 0);
MODULE_PARM_DESC(call_end, "address of __stop_static_call_sites");
module_param(stats_key, ulong, 0);
MODULE_PARM_DESC(stats_key, "address of sched_schedstats");
module_param(call_key, ulong, 0);
MODULE_PARM_DESC(call_key, "address of __SCK__x86_pmu_handle_irq");
module_param(jit_enable, ulong, 0);
MODULE_PARM_DESC(jit_enable, "address of bpf_jit_enable");
module_param(kexec_disabled, ulong, 0);
MODULE_PARM_DESC(kexec_disabled, "address of kexec_load_disabled");

static const struct probe *const tables[] = {
	text_probes,	patch_probes,	   execute_probes, module_probes, control_probes,
	descriptor_probes, machine_probes, race_probes,	   last_probes,
};

static const struct probe *const denied_tables[] = { kprobe_probes, jit_probes };

static const char *const result_names[] = { "succeeded", "refused", "error" };

static DEFINE_MUTEX(running);
static char answer[320];

enum result finish(struct run *run, enum result result, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vscnprintf(run->detail, sizeof(run->detail), format, arguments);
	va_end(arguments);
	return result;
}

bool more_than_one_cpu(void)
{
	return num_online_cpus() > 1;
}

static void show(struct seq_file *file, const struct probe *table)
{
	for (const struct probe *probe = table; probe->name; probe++)
		if (!probe->applies || probe->applies())
			seq_printf(file, "%s\t%s\n", probe->name, probe->description);
}

static int show_list(struct seq_file *file, void *unused)
{
	for (size_t i = 0; i < ARRAY_SIZE(tables); i++)
		show(file, tables[i]);
	return 0;
}

static int show_denied(struct seq_file *file, void *unused)
{
	for (size_t i = 0; i < ARRAY_SIZE(denied_tables); i++)
		show(file, denied_tables[i]);
	return 0;
}

static int show_state(struct seq_file *file, void *unused)
{
	struct run run = {};
	bool kept = check_state(&run) == SUCCEEDED;

	seq_printf(file, "state\t%s\t%s\n", kept ? "kept" : "lost", run.detail);
	return 0;
}

static int open_list(struct inode *inode, struct file *file)
{
	return single_open(file, show_list, NULL);
}

static int open_denied(struct inode *inode, struct file *file)
{
	return single_open(file, show_denied, NULL);
}

static int open_state(struct inode *inode, struct file *file)
{
	return single_open(file, show_state, NULL);
}

static int open_heki(struct inode *inode, struct file *file)
{
	return single_open_size(file, heki_show, NULL, PAGE_SIZE * 4);
}

static const struct probe *find_in(const struct probe *table, const char *name)
{
	for (const struct probe *probe = table; probe->name; probe++)
		if (!strcmp(probe->name, name))
			return probe->applies && !probe->applies() ? NULL : probe;
	return NULL;
}

static const struct probe *find(const char *name)
{
	const struct probe *found = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(tables) && !found; i++)
		found = find_in(tables[i], name);
	for (size_t i = 0; i < ARRAY_SIZE(denied_tables) && !found; i++)
		found = find_in(denied_tables[i], name);
	return found;
}

static ssize_t write_run(struct file *file, const char __user *text, size_t length, loff_t *at)
{
	char line[80], name[48];
	struct run run = {};
	const struct probe *probe;
	enum result result;

	if (length >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, text, length))
		return -EFAULT;
	line[length] = 0;
	if (sscanf(line, "%47s %lx", name, &run.user) < 1)
		return -EINVAL;
	probe = find(name);
	if (!probe)
		return -ENOENT;
	mutex_lock(&running);
	result = probe->run(&run);
	scnprintf(answer, sizeof(answer), "%s\t%s\t%s\n", name, result_names[result], run.detail);
	mutex_unlock(&running);
	return length;
}

static ssize_t read_run(struct file *file, char __user *to, size_t length, loff_t *at)
{
	return simple_read_from_buffer(to, length, at, answer, strlen(answer));
}

static ssize_t write_heki(struct file *file, const char __user *text, size_t length, loff_t *at)
{
	int error = kstrtouint_from_user(text, length, 10, &heki_calls);

	return error ?: length;
}

static ssize_t write_off(struct file *file, const char __user *text, size_t length, loff_t *at)
{
	power_off();
	return -EIO;
}

static ssize_t write_kexec(struct file *file, const char __user *text, size_t length, loff_t *at)
{
	WRITE_ONCE(*(int *)kexec_disabled, 0);
	return length;
}

static const struct proc_ops list_ops = {
	.proc_open = open_list,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

static const struct proc_ops denied_ops = {
	.proc_open = open_denied,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

static const struct proc_ops state_ops = {
	.proc_open = open_state,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

static const struct proc_ops heki_ops = {
	.proc_open = open_heki,
	.proc_read = seq_read,
	.proc_write = write_heki,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

static int open_restore(struct inode *inode, struct file *file)
{
	return single_open(file, restore_show, NULL);
}

static ssize_t write_restore(struct file *file, const char __user *text, size_t length, loff_t *at)
{
	char word[16] = "";
	long error;

	if (length >= sizeof(word))
		return -EINVAL;
	if (copy_from_user(word, text, length))
		return -EFAULT;
	error = restore_do(word);
	return error ?: length;
}

static const struct proc_ops restore_ops = {
	.proc_open = open_restore,
	.proc_read = seq_read,
	.proc_write = write_restore,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

static const struct proc_ops run_ops = {
	.proc_read = read_run,
	.proc_write = write_run,
	.proc_lseek = default_llseek,
};

static const struct proc_ops kexec_ops = {
	.proc_write = write_kexec,
};

static const struct proc_ops off_ops = {
	.proc_write = write_off,
};

static struct proc_dir_entry *directory;

static int __init probes_init(void)
{
	int error;

	if (!stext || !etext || !rodata || !ro_after_init || !jump_start || !jump_end ||
	    !call_start || !call_end || !stats_key || !call_key || !jit_enable ||
	    !kexec_disabled) {
		pr_err("ravelin_probes: give every address as a parameter (see modinfo)\n");
		return -EINVAL;
	}
	error = execute_init();
	if (error)
		return error;
	error = module_init_text(probes_init);
	if (error) {
		execute_exit();
		return error;
	}
	directory = proc_mkdir("ravelin_probes", NULL);
	if (!directory || !proc_create("list", 0400, directory, &list_ops) ||
	    !proc_create("denied", 0400, directory, &denied_ops) ||
	    !proc_create("state", 0400, directory, &state_ops) ||
	    !proc_create("heki", 0600, directory, &heki_ops) ||
	    !proc_create("run", 0600, directory, &run_ops) ||
	    !proc_create("restore", 0600, directory, &restore_ops) ||
	    !proc_create("kexec", 0200, directory, &kexec_ops) ||
	    !proc_create("off", 0200, directory, &off_ops)) {
		proc_remove(directory);
		module_exit_text();
		execute_exit();
		return -ENOMEM;
	}
	return 0;
}

static void __exit probes_exit(void)
{
	proc_remove(directory);
	module_exit_text();
	execute_exit();
}

module_init(probes_init);
module_exit(probes_exit);
MODULE_DESCRIPTION("Attack probes for the Ravelin hypervisor");
MODULE_LICENSE("GPL");
