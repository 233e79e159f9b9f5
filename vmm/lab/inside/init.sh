#!/bin/busybox sh
# The lab host's first process: mount, load what the agent needs to be reached, become the agent.
# At every boot each program started here costs 40 ms of emulated instructions: hence file systems
# by `mount -a`, modules by one modprobe, and the agent's interpreter on the other CPU meanwhile.
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
    rmdir /root  # the kernel makes one; the outside's is wanted
    for modules in /usr/lib/modules/*/pyvmm.boot; do
        [ -e "$modules" ] && modprobe -a $(cat "$modules")
    done
    ifconfig lo up
    ifconfig eth0 10.0.2.15 netmask 255.255.255.0
    route add default gw 10.0.2.2  # for passt: QEMU lets nothing out, but answers ARP
    hostname lab
    ln -s /proc/self/fd /dev/fd
    mkdir /dev/pts /dev/shm /run/pyvmm /run/tmp /run/user
    # readahead caches for reading only: what is written here is there at once for who watches
    # from outside, and a kernel image is read in 1 s, not in 30 as with cache=none. The price is
    # NFS's: a file that changes outside while it is open here is seen anew when opened anew.
    options=trans=virtio,version=9p2000.L,msize=512000,cache=readahead,nodev
    echo "devpts /dev/pts devpts mode=620,ptmxmode=666
tmpfs /dev/shm tmpfs
outside /host 9p $options" > /etc/fstab
    mount -a

    # The outside's files: all in /host, and where this system has nothing, at their own place.
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
