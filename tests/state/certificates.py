"""Keys and certificates for tests of TLS."""

from __future__ import annotations

from pathlib import Path

import trustme


def write(directory: Path, authority: trustme.CA, *names: str) -> Path:
    """Fill *directory* with the files of both sides of a host with *names*; return it."""
    directory.mkdir()
    authority.cert_pem.write_to_path(directory / "ca-cert.pem")
    for side in ("server", "client"):
        issued = authority.issue_cert(*names)
        issued.private_key_pem.write_to_path(directory / f"{side}-key.pem")
        for blob in issued.cert_chain_pems:
            blob.write_to_path(directory / f"{side}-cert.pem", append=True)
    return directory
