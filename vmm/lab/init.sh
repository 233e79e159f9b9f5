#!/bin/busybox sh
# The lab host's first process: mount, load what the agent needs to be reached, become the agent.
# Everything here is paid for in emulated instructions, at every boot: no loops over programs.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
rmdir /root  # the kernel makes one
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
ln -sf /proc/self/fd /dev/fd

cd /usr/lib/modules/"$(uname -r)" 2>/dev/null && while read -r module; do
    insmod "$module"
done < pyvmm.boot
cd /

ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
hostname lab

# The outside's files: all of them in /host, and where this system has nothing, at their own place.
if mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap,nodev outside /host; then
    for directory in /host/*; do
        here=${directory#/host}
        if [ ! -e "$here" ] && [ -d "$directory" ] && [ ! -L "$directory" ]; then
            mkdir "$here" && mount --bind "$directory" "$here"
        fi
    done
fi
for directory in /root /tmp; do
    [ -d "$directory" ] || mkdir "$directory"
done
exec /usr/bin/python3 -I -X frozen_modules=on /usr/lib/pyvmm/vmm/lab/agent.py
