#!/bin/busybox sh
# The lab host's first process: mount, load what the agent needs to be reached, become the agent.
# Everything here is paid for in emulated instructions at every boot: busybox only, no loops over
# programs, and the agent's interpreter starts meanwhile, on the other CPU.
export PATH=/usr/sbin:/usr/bin HOME=/ TERM=dumb LANG=C.UTF-8
rmdir /root  # the kernel makes one; the outside's is wanted
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mkfifo /run/prepared

prepare() {
    if cd /usr/lib/modules/"$(uname -r)" 2>/dev/null; then
        while read -r module; do
            insmod "$module"
        done < pyvmm.boot
        cd /
    fi
    ifconfig lo up
    ifconfig eth0 10.0.2.15 netmask 255.255.255.0
    hostname lab
    mount -t sysfs sysfs /sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t debugfs debugfs /sys/kernel/debug
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
    mount -t tmpfs tmpfs /dev/shm
    ln -s /proc/self/fd /dev/fd

    # The outside's files: all in /host, and where this system has nothing, at their own place.
    options=trans=virtio,version=9p2000.L,msize=512000,cache=mmap,nodev
    if mount -t 9p -o $options outside /host; then
        for directory in /host/*; do
            here=${directory#/host}
            if [ -d "$directory" ] && [ ! -L "$directory" ] && [ ! -e "$here" ]; then
                mkdir "$here" && mount --bind "$directory" "$here"
            fi
        done
    fi
    for directory in /root /tmp; do
        [ -d "$directory" ] || mkdir -m 1777 "$directory"
    done
}

{
    prepare
    echo > /run/prepared
    cd /usr/lib/modules/"$(uname -r)" 2>/dev/null && modprobe -a $(cat pyvmm.later)
} &
exec /usr/bin/python3 -I -S /usr/lib/pyvmm/vmm/lab/agent.py
