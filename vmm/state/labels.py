"""Labels for schedulers: a host as a feature file of Kubernetes' Node Feature Discovery (NFD).

A pod selects nodes by them, so that a guest starts, and can be moved, where it can live.
Source: NFD, "Customization guide", local feature source: a line ``<namespace>/<name>=<value>`` for
each label, ``# +expiry-time=`` with a time as RFC 3339 has it for the lines after it; Kubernetes,
"Labels and Selectors", for names and values.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from vmm.coherence.capability import Support

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.state.host_description import HostDescription

NAMESPACE: Final = "feature.node.kubernetes.io"
"""NFD's own, which needs no setting in nfd-master."""

PREFIX: Final = f"{NAMESPACE}/kvm-arm64."


def labels(host: HostDescription) -> Mapping[str, str]:
    """Return *host*'s labels by their full names.

    fwb, dic, idc     true, false, or unknown
    cacheable-pfnmap  how KVM maps cacheable device memory Write-Back: mainline, rfc or per-vm, by
                      the interface; no: it does not, or that is not known
    page-size         of the host, in bytes
    ipa-bits          of the largest guest physical space
    baseline          `VisibleCpu.hash`: guests move freely among hosts with the same
    """
    cacheable = host.cacheable
    interface = cacheable.generation.value.lower().replace(" ", "-")
    values = {
        "fwb": _word(cacheable.fwb),
        "dic": _word(cacheable.dic),
        "idc": _word(cacheable.idc),
        "cacheable-pfnmap": interface if cacheable.support is Support.SUPPORTED else "no",
        "page-size": str(host.page_size),
        "ipa-bits": str(host.cpu.ipa_bits),
        "baseline": host.cpu.hash,
    }
    return {f"{PREFIX}{name}": value for name, value in values.items()}


def feature_file(host: HostDescription, expiry: float | None = None) -> str:
    """Return the text of a feature file.

    *expiry*: when NFD begins to ignore it, in seconds since the epoch; None: never.
    """
    lines = [f"{name}={value}" for name, value in labels(host).items()]
    if expiry is not None:
        until = datetime.fromtimestamp(int(expiry), UTC).isoformat().replace("+00:00", "Z")
        lines.insert(0, f"# +expiry-time={until}")
    return "\n".join(lines) + "\n"


def _word(answer: bool | None) -> str:  # noqa: FBT001  (an answer)
    return "unknown" if answer is None else str(answer).lower()
