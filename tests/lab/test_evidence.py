"""What pyvmm posts of a host is what its survey finds there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.lab.host import matrix
from vmm.lab.host.emulated_host import Host
from vmm.lab.host.gh200 import BDF
from vmm.lab.host.session import inside
from vmm.passthrough import evidence

pytestmark = [pytest.mark.lab, pytest.mark.kernels, pytest.mark.timeout(7200)]
SIGNER = "Ada Lovelace <ada@example.org>"
EXPECTED = matrix.load_expected()


@pytest.mark.parametrize("profile", ["gh200", "gh200-nofwb", "rfc", "posted", "legacy-gh200"])
def test_what_is_posted_is_what_the_matrix_has(
    lab_host: Callable[[str], Host], profile: str, tmp_path: Path
) -> None:
    host = lab_host(profile)
    words = ["--bar", f"{BDF}:4", "--signed-off-by", SIGNER, "--html", inside(tmp_path / "page")]
    done = host.run(["pyvmm", "evidence", "--host", "native", *words], timeout=120)
    assert done.status == 0, done.stderr.decode()
    facts, signer = evidence.read(done.stdout.decode(), profile)
    assert signer == SIGNER
    assert evidence.checksum(facts) in (tmp_path / "page").read_text()

    posted = ("anonymous", "udmabuf (PFNMAP)", "region 4")
    assert (
        matrix.compare(
            {profile: facts["rows"]}, {profile: {name: EXPECTED[profile][name] for name in posted}}
        )
        == []
    )
