"""Run in a lab host: be a guest that has taken over one thread of its machine's process.

    attacked_run.py KIND FILE ARGUMENT...

ARGUMENTs are those of ``pyvmm``. In a thread of KIND (loop, vcpu, queue, control), once the
process is confined and a guest is about to run, tries what tests/ground/sandboxed.py does, and
writes to FILE what came of each. Modules that were imported after that moment are listed, too.
"""

from __future__ import annotations

import atexit
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[3]))

from tests.ground.sandboxed import attempts
from vmm import sandbox, thread
from vmm.cli import main
from vmm.machine.machine import Machine
from vmm.machine.vcpu_thread import VcpuThread

OTHERS = {"queue": thread.QUEUE, "control": thread.CONTROL}
kind, file, *arguments = sys.argv[1:]
found: dict[str, Any] = {}
confine, run_vcpu = Machine.confine, VcpuThread._main


def confine_and_attack(self: Machine, **options: bool) -> None:
    confine(self, **options)
    found["before"] = sorted(sys.modules)
    if kind == "loop":
        found["errors"] = attempts()


def attack_and_run(self: VcpuThread) -> None:
    if kind == "vcpu":
        found["errors"] = attempts()
    elif kind in OTHERS:
        tries = thread.start("q", lambda: found.update(errors=attempts()), kind=OTHERS[kind])
        tries.join()
    run_vcpu(self)


def tell() -> None:
    found["late"] = sorted({*sys.modules} - {*found.pop("before", sys.modules)})
    found["denied"] = [(each.call, each.thread) for each in sandbox.denials()]
    output.write(json.dumps(found))
    output.close()


output = Path(file).open("w")  # noqa: SIM115  (before it is too late)
atexit.register(tell)
Machine.confine = confine_and_attack  # type: ignore[method-assign]
VcpuThread._main = attack_and_run  # type: ignore[method-assign]
sys.argv = ["pyvmm", *arguments]
sys.exit(main())
