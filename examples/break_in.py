"""Break into a running kernel with gdb: who reads a file, what its CPU is like, one step on.

    pyvmm lab install fwb gdb
    pyvmm lab exec fwb -- python3 examples/break_in.py guest.img

gdb speaks to a socket of the machine's. With a vmlinux (`gdb vmlinux`) it would know all names;
here the kernel itself is asked for one address. With `nokaslr` both agree about addresses.
"""

import subprocess
import tempfile

import vmm

PROMPT = r"guest:\S*# "
WORDS = "console=ttyAMA0 quiet nokaslr panic=-1"
READ_ON = "while read -r up </proc/uptime; do :; done\n"


def gdb(socket: str, *commands: str) -> str:
    """Return what gdb says to *commands*."""
    words = ["set architecture aarch64", f"target remote {socket}", *commands]
    argv = ["gdb", "-nx", "-q", "-batch", *(word for each in words for word in ("-ex", each))]
    return subprocess.run(
        argv, check=True, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ).stdout


with vmm.program("IMAGE") as (image,), tempfile.TemporaryDirectory() as directory:
    socket = f"{directory}/gdb"
    with vmm.Machine(image, memory="512M", cpus=4, cmdline=WORDS, gdb=socket) as machine:
        machine.start()
        machine.console.expect(PROMPT)
        machine.console.send("grep ' vfs_read$' /proc/kallsyms\n")
        address = int(machine.console.expect(r"\n([0-9a-f]{16}) T vfs_read")[1], 16)
        machine.console.send(READ_ON)
        said = gdb(
            socket,
            f"break *{address:#x}",
            "continue",
            "info threads",
            "print/x $SP_EL0",  # Linux's `current`
            "print $SCTLR_EL1 & 1",
            "stepi",
            "detach",
        )
        print(said, end="")
        machine.console.send("\3poweroff\n")
        print("it has", machine.wait(timeout=300))
