#!/bin/sh
# The small guest's first process: mounts, prints what it is, and does what the kernel's command
# line asks for:
#
#     pyvmm.run="COMMAND"    runs COMMAND in the shell first
#     pyvmm.then=shell       (the default) a shell on the console; leaving it powers off
#     pyvmm.then=poweroff    powers off
#     pyvmm.then=reboot      reboots, for ever
#     pyvmm.then=panic       crashes the kernel
#     pyvmm.then=idle        does nothing more
#
# With vmm.lab.fixture, kernel modules are loaded before, and a script is sourced after, COMMAND.
# The CPU may be an emulated one, so this uses the shell's builtins where it can.
. /etc/profile
mount -a # /etc/fstab: one process for all
echo guest >/proc/sys/kernel/hostname
read -r arguments </proc/cmdline
read -r release </proc/sys/kernel/osrelease
read -r cpus </sys/devices/system/cpu/online
echo "
pyvmm guest: Linux $release
CPUs online: $cpus"

modules=/usr/lib/modules/$release
if [ -e "$modules/pyvmm.load" ]; then
    echo /bin/modprobe >/proc/sys/kernel/modprobe
    read -r load <"$modules/pyvmm.load"
    [ -z "$load" ] || modprobe -a $load
fi

next=shell
for word in $arguments; do
    case $word in
    pyvmm.then=*) next=${word#*=} ;;
    esac
done
case $arguments in
*pyvmm.run=\"*)
    arguments=${arguments#*pyvmm.run=\"}
    (eval "${arguments%%\"*}")
    ;;
esac
[ ! -e /etc/pyvmm.script ] || (. /etc/pyvmm.script)

case $next in
poweroff) poweroff ;;
reboot) reboot ;;
panic) echo c >/proc/sysrq-trigger ;;
idle) sleep infinity ;;
shell)
    cd /root
    setsid cttyhack sh -l # a session with the console as its terminal: job control, ^C
    poweroff
    ;;
*)
    echo "pyvmm guest: pyvmm.then=$next is none of shell, poweroff, reboot, panic, idle"
    poweroff
    ;;
esac
