#!/bin/busybox sh
# The lab host's first process: mount, load what the agent needs to be reached, become the agent.
# Each program that is started here costs every boot 40 ms of emulated instructions. Hence `mount -a`
# for file systems, one modprobe for modules, and the agent's Python starts on the other CPU meanwhile.
export PATH=/usr/sbin:/usr/bin HOME=/ TERM=dumb LANG=C.UTF-8

echo "proc /proc proc
devtmpfs /dev devtmpfs
sysfs /sys sysfs
cgroup2 /sys/fs/cgroup cgroup2
debugfs /sys/kernel/debug debugfs
tmpfs /run tmpfs" > /etc/fstab
mount -a
mkfifo /run/prepared

prepare() {
    rmdir /root  # the kernel makes one; the outside's is to be mounted
    for modules in /usr/lib/modules/*/pyvmm.boot; do
        [ -e "$modules" ] && modprobe -a $(cat "$modules")
    done
    ifconfig lo up
    ifconfig eth0 10.0.2.15 netmask 255.255.255.0
    route add default gw 10.0.2.2  # for passt: QEMU lets nothing out, but answers ARP
    hostname lab
    # Guest RAM that daemons share is a memfd: huge pages for it, as for anonymous memory.
    huge=/sys/kernel/mm/transparent_hugepage/shmem_enabled
    [ ! -e $huge ] || echo advise > $huge
    ln -s /proc/self/fd /dev/fd
    mkdir /dev/pts /dev/shm /run/mapped /run/pyvmm /run/tmp /run/user
    # cache=readahead caches reads only. What is written here is visible outside at once, and a
    # kernel image is read in 1 s, not in 30 s as with cache=none. As with NFS, a file that changes
    # outside while it is open here is seen anew only when it is opened anew.
    options=trans=virtio,version=9p2000.L,msize=512000,nodev
    echo "devpts /dev/pts devpts mode=620,ptmxmode=666
tmpfs /dev/shm tmpfs
outside /host 9p $options,cache=readahead
mapped /run/mapped 9p $options,cache=mmap" > /etc/fstab
    mount -a

    # The outside's files: all below /host; also at their own place where this system has nothing.
    missing=
    for directory in /host/*; do
        here=${directory#/host}
        case $here in *[!A-Za-z0-9._/-]*) continue ;; esac
        if [ -d "$directory" ] && [ ! -L "$directory" ] && [ ! -e "$here" ]; then
            missing="$missing $here"
            echo "$directory $here none bind"
        fi
    done > /etc/fstab
    mkdir $missing
    mount -a
    [ -d /tmp ] || mkdir -m 1777 /tmp
}

{
    prepare
    echo > /run/prepared
    for modules in /usr/lib/modules/*/pyvmm.later; do
        [ -e "$modules" ] && modprobe -a $(cat "$modules")
    done
} &
exec /usr/bin/python3 -I -S -c '
import sys
sys.path.insert(0, "/usr/lib/pyvmm")
from vmm.lab.inside.agent import main
main()
'
