"""Print the path of the small guest's image, after making it if the cache lacks it."""

from __future__ import annotations

import sys

from vmm.errors import VmmError
from vmm.lab.guest.uki import guest_image

try:
    print(guest_image())
except VmmError as error:
    print(f"quickstart: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
