"""The address of a PCI function: ``domain:bus:device.function``, in hexadecimal."""

from __future__ import annotations

import re
from typing import Final

from vmm.errors import UserError

_BDF: Final = re.compile(
    r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{1,2}):([01]?[0-9a-f])\.([0-7])", re.IGNORECASE
)


def parse_bdf(text: str, option: str = "") -> str:
    """Return the address as sysfs writes it: four digits of domain at least, in lower case.

    The domain may be left out, as lspci does; it is 0 then. One function has one such text, so
    addresses can be compared. *option* begins the error. Raises `UserError`.
    """
    match = _BDF.fullmatch(text.strip())
    if match is None:
        raise UserError(
            f"{option}{': ' if option else ''}{text!r} is not the address of a PCI device",
            "write [domain:]bus:device.function in hexadecimal, such as 0000:01:00.0",
        )
    domain, bus, device, function = (int(part or "0", 16) for part in match.groups())
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function}"
