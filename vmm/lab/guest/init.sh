#!/bin/sh
# The small guest's first process: mounts, prints the kernel's release and the CPUs, then follows the
# kernel's command line:
#
#     pyvmm.run="COMMAND"    run COMMAND in the shell first
#     pyvmm.then=shell       (the default) run a shell on the console; power off when it ends
#     pyvmm.then=poweroff    power off
#     pyvmm.then=reboot      reboot; the next boot does the same
#     pyvmm.then=panic       crash the kernel
#     pyvmm.then=idle        do nothing more
#
# With vmm.lab.guest.fixture, modules are loaded before COMMAND, and a script is sourced after it.
# A command that pyvmm has put into /etc/pyvmm.command comes instead of all that: see command.sh.
# The CPU may be emulated: use the shell's builtins where possible.
. /etc/profile
mount -a # /etc/fstab: one process for all
cp -P /etc/dev/* /dev # devtmpfs has no /dev/stdout
echo guest >/proc/sys/kernel/hostname
read -r arguments </proc/cmdline
read -r release </proc/sys/kernel/osrelease
read -r cpus </sys/devices/system/cpu/online # such as 0-3,5
count=0
IFS=,
for range in $cpus; do count=$((count + ${range#*-} - ${range%-*} + 1)); done
unset IFS
banner="
pyvmm guest: Linux $release
CPUs online: $count"
echo "$banner"
consoles=
read -r consoles </sys/class/tty/console/active # the preferred one, which has our output, is last

modules=/usr/lib/modules/$release
if [ -e "$modules/pyvmm.load" ]; then
    echo /bin/modprobe >/proc/sys/kernel/modprobe
    read -r load <"$modules/pyvmm.load"
    case $load in
    '') ;;
    as-found)
        # What devices ask for. Those on virtio's and PCI's buses show once these have drivers.
        for _ in 1 2; do
            modprobe -qa $(cat /sys/bus/*/devices/*/modalias 2>/dev/null) 2>/dev/null
        done
        if [ -e /sys/class/net/eth0 ]; then
            ip link set lo up; ip link set eth0 up
            udhcpc -b -i eth0 -s /etc/udhcpc.script >/dev/null 2>&1 &
        fi
        ;;
    *) modprobe -a $load ;;
    esac
fi

# hvc0 comes with its driver, which may be a module. If it is a console, it shows the banner, too.
if [ -e /dev/hvc0 ] && [ "${consoles##* }" != hvc0 ]; then
    read -r consoles </sys/class/tty/console/active
    case " $consoles " in *' hvc0 '*) echo "$banner" >/dev/hvc0 ;; esac
fi
[ ! -e /etc/pyvmm.command ] || . /etc/pyvmm.runner # does not return

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
