"""``--cgroup``: a parent and limits, which are files of the kernel's."""

from __future__ import annotations

import pytest

from vmm.config.cgroup import CgroupConfig, parse_cgroup
from vmm.errors import UserError


def test_a_parent_and_limits() -> None:
    assert parse_cgroup("machines") == CgroupConfig("machines")
    assert parse_cgroup("/a/b/,memory.max=2G,cpu.max=50000 100000") == CgroupConfig(
        "a/b", (("memory.max", "2G"), ("cpu.max", "50000 100000"))
    )
    assert parse_cgroup("a,hugetlb.2MB.max=0,io.max=8:0 rbps=1").limits[1] == (
        "io.max",
        "8:0 rbps=1",
    )


@pytest.mark.parametrize(
    "text",
    [
        *("../a", "a/../..", "a,", "a,memory", "a,memory.max", "a,memory.max=", "a,../x=1"),
        *("a,cgroup.procs=1", "a,memory/x=1", "a,pids.max=1,pids.max=2", "a,pids.max=1\n2"),
    ],
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^--cgroup"):
        parse_cgroup(text)
