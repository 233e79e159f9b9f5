"""Boot Linux, log in to its shell, ask it something, and look at a CPU that it runs on.

    pyvmm lab exec fwb -- python3 examples/boot_linux.py guest.img

scripts/quickstart makes guest.img. With `with vmm.Lab("fwb") as lab, lab.Machine(...)` the same
program runs on any machine that has QEMU.
"""

import vmm

PROMPT = r"guest:\S*# "

with vmm.program("IMAGE") as (image,), vmm.Machine(image, memory="512M", cpus=2) as machine:
    machine.start()
    machine.console.expect(PROMPT)
    machine.console.send("uname -r; nproc\n")
    release, cpus = machine.console.expect(r"\n(\d\S+)\r\n(\d+)\r\n").groups()
    print(f"Linux {release.decode()} on {cpus.decode()} CPUs")

    machine.pause()
    registers = machine.vcpus[0].registers
    print("its MMU is", "on" if registers.fields("SCTLR_EL1")["M"] else "off")
    print("it is at EL", registers.fields("pstate")["EL"], sep="")
    machine.resume()

    machine.console.send("exit\n")
    print("it has", machine.wait(timeout=300))
