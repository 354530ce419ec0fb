#!/bin/sh
# Runs inside a Debian userland, started by systemd when the system is up: uses the kernel in the
# ways in which it changes its own code, and reports each as a line `@@ check JSON` on the console.
#
# On the kernel's command line stand `ravelin.checks=`, the names of the checks with `,` between
# them; `ravelin.seconds=`, how long the load lasts; and `ravelin.bpf=`, which of test_bpf's tests
# run (all, unless it is there). Whatever happens, the machine is switched off at the end.

CONSOLE=/dev/ttyS0
TRACE=/sys/kernel/tracing
DETAIL=/run/ravelin-check
# Taint flags (Documentation/admin-guide/tainted-kernels.rst): bad page, died, warned, soft lockup.
BAD_TAINT=$((1 << 5 | 1 << 7 | 1 << 9 | 1 << 14))

# File systems, network devices, block devices, a scheduler and a cipher of every Debian kernel.
MODULES="dummy veth bridge bonding vxlan macvlan ipip 8021q tun sch_htb
    loop nbd zram dm_crypt raid1 btrfs xfs squashfs overlay twofish_generic"

option() {
    tr ' ' '\n' < /proc/cmdline | sed -n "s/^ravelin\.$1=//p" | tail -n 1
}

# On a line of its own, whatever else was being printed.
say() {
    printf '\n@@ %s\n' "$*" > $CONSOLE
}

as_json_text() {
    tr -d '\\"' | tr '\n\t' '; ' | tr -cd '[:print:]' | cut -c 1-400
}

seconds_up() {
    cut -d ' ' -f 1 /proc/uptime
}

# check NAME: runs check_NAME; what it prints is the detail.
check() {
    say "begin {\"name\":\"$1\"}"
    start=$(seconds_up)
    if "check_$1" > $DETAIL 2>&1; then ok=true; else ok=false; fi
    detail=$(as_json_text < $DETAIL)
    say "check {\"name\":\"$1\",\"ok\":$ok,\"start\":$start,\"end\":$(seconds_up),\"detail\":\"$detail\"}"
}

# No unit failed, and somebody waits for a name on the console.
check_login() {
    systemctl is-system-running --wait || { systemctl --failed --plain --no-legend; return 1; }
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        pgrep -x agetty > /dev/null && return 0
        sleep 1
    done
    echo "no getty runs"
    return 1
}

is_loaded() {
    grep -q "^$1 " /proc/modules
}

# A module can be in use for a while: udev opens new disks, and the kernel tests new ciphers.
unload() {
    udevadm settle
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        modprobe -r "$1" 2> /dev/null && return 0
        sleep 1
    done
    modprobe -r "$1"
}

check_modules() {
    count=0
    for module in $MODULES; do
        # Twice, so that pages are code, then free, then used again.
        for _ in 1 2; do
            modprobe "$module" || return 1
            is_loaded "$module" || { echo "$module is not loaded"; return 1; }
            unload "$module" || return 1
            is_loaded "$module" && { echo "$module is still loaded"; return 1; }
        done
        count=$((count + 1))
    done
    echo "$count modules"
    test $count -ge 20
}

check_test_bpf() {
    range=$(option bpf)
    modprobe test_bpf ${range:+"test_range=$range"} || return 1
    modprobe -r test_bpf || return 1
    dmesg | grep 'test_bpf: #.* FAIL' && return 1
    # All passed, and some of them as native code.
    dmesg | grep -o 'test_bpf: Summary: [1-9][0-9]* PASSED, 0 FAILED, \[[1-9].*'
}

# It refuses to be loaded if a key has another value than it should.
check_test_static_keys() {
    modprobe test_static_keys && modprobe -r test_static_keys
}

lines_traced() {
    grep -vc '^#' $TRACE/trace
}

check_function_tracer() {
    for tracer in function function_graph; do
        echo $tracer > $TRACE/current_tracer || return 1
        count=$(lines_traced)
        echo nop > $TRACE/current_tracer || return 1
        echo "$tracer: $count lines"
        test "$count" -gt 0 || return 1
    done
}

# All of them at once.
check_tracepoints() {
    echo > $TRACE/trace
    echo 1 > $TRACE/events/enable || return 1
    ls / > /dev/null
    echo 0 > $TRACE/events/enable || return 1
    count=$(lines_traced)
    echo "$count lines"
    test "$count" -gt 0
}

check_nftables() {
    nft -f /usr/lib/ravelin/rules.nft || return 1
    # Some connections, which must have been counted.
    stress-ng --sock 1 --sock-ops 5 > /dev/null 2>&1 || return 1
    nft list table inet ravelin | grep -o 'related counter packets [1-9].*' || return 1
    nft add element inet ravelin ports '{ 8080, 8443 }' || return 1
    nft list set inet ravelin ports | grep -q 8443 || return 1
    nft delete table inet ravelin || return 1
    test -z "$(nft list tables)"
}

check_stress_ng() {
    stress-ng --cpu 1 --vm 1 --vm-bytes 64m --fork 1 --mmap 1 --mmap-bytes 32m --sysfs 1 --syscall 1 \
        --temp-path /tmp --timeout "$(option seconds)s" > /run/stress-ng 2>&1
    code=$?
    grep -E 'fail|skip|successful|unsuccessful|killed' /run/stress-ng
    return $code
}

# The kernel has complained of nothing.
check_kernel() {
    taint=$(cat /proc/sys/kernel/tainted)
    echo "taint $taint"
    dmesg | grep -A 30 -E 'cut here|WARNING: CPU|BUG: |Oops: |general protection fault|detected stall' \
        > $CONSOLE && return 1
    test $((taint & BAD_TAINT)) -eq 0
}

# From here on only reports are read from the console; `check_kernel` looks at what was said.
dmesg -n 1
say "userland {\"kernel\":\"$(uname -r)\",\"cpus\":$(nproc)}"
for name in $(option checks | tr , ' '); do
    check "$name"
done
say "done {}"
systemctl --no-block poweroff
