"""The Debian mirror that the machine's own apt uses, and Debian's keys."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from vmm.errors import HostError
from vmm.lab import cache
from vmm.lab.command import run

_SUITES = ("bookworm", "trixie", "oldstable", "stable")
_KEYRINGS = Path("/usr/share/keyrings")
_NAMES = ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp")


@dataclass(frozen=True)
class Mirror:
    """The URIs of Debian's archive and of its security archive on one mirror."""

    debian: str
    security: str | None = None


def find_mirror() -> Mirror:
    """Return the mirror that the machine's apt is configured for.

    Raises HostError if there is none.
    """
    return parse_targets(run(["apt-get", "indextargets"]))


def parse_targets(text: str) -> Mirror:
    """Return the mirror in the output of ``apt-get indextargets``: stanzas of ``Key: value``.

    Raises HostError if there is none.
    """
    debian = security = None
    for stanza in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        uri, suite = fields.get("Repo-URI"), fields.get("Release", "")
        # Origin is known only once the machine has run `apt-get update`.
        if (
            not uri
            or fields.get("Component") != "main"
            or fields.get("Origin", "Debian") != "Debian"
        ):
            continue
        base, _, part = suite.partition("/")[0].partition("-")
        if base not in _SUITES:
            continue
        if part == "security":
            security = security or uri
        elif not part:
            debian = debian or uri
    if debian is None:
        raise HostError(
            "this machine's apt uses no Debian mirror",
            "the lab needs one in its sources: Debian 12 or 13, component main",
        )
    return Mirror(debian, security)


def keyring() -> Path:
    """Return the file with Debian's keys: one that was fetched before, or the machine's."""
    for path in (_private(), *(_KEYRINGS / name for name in _NAMES)):
        if path.exists():
            return path
    return newer_keyring()


def newer_keyring() -> Path:
    """Fetch the newest debian-archive-keyring by the machine's own apt, which verifies it."""
    with (
        cache.writing("Debian's keyring"),
        tempfile.TemporaryDirectory(prefix=".keyring-", dir=cache.root()) as directory,
    ):
        where = Path(directory)
        run(["apt-get", "-qq", "download", "debian-archive-keyring"], cwd=where)
        for deb in where.glob("*.deb"):
            run(["dpkg-deb", "-x", str(deb), directory])
        for name in _NAMES:
            path = where / "usr/share/keyrings" / name
            if path.exists():
                _private().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                return path.resolve().replace(_private())
    raise HostError("debian-archive-keyring holds no keyring", "update the machine's packages")


def _private() -> Path:
    return cache.root() / "apt" / "debian-archive-keyring.gpg"
