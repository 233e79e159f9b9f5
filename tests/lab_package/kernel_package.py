"""A kernel source package in miniature: Debian's layout, Kbuild's manners, four objects."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAKEFILE = r"""
O ?= .
OBJECTS := $(addprefix $(O)/,one.o two.o three.o four.o)

# Like Kconfig: what it doesn't know is dropped without a word.
allnoconfig:
	grep -E '^CONFIG_(SMP|KVM)=' $(KCONFIG_ALLCONFIG) > $(O)/.config

Image: $(OBJECTS)
	@mkdir -p $(O)/arch/arm64/boot
	@echo '  LD      Image'
	@cat $(OBJECTS) > $(O)/arch/arm64/boot/Image
	@echo 7.3.4$(LOCALVERSION) >> $(O)/arch/arm64/boot/Image

$(O)/%.o: %.c
	@echo '  CC      $*.o'
	@echo $*.o >> $(O)/compiled
	@if [ -e $(O)/../breakage ]; then sh $(O)/../breakage $*; fi
	@cp $< $@
	@touch $(O)/.$*.o.cmd
"""

FILES = {
    "Makefile": MAKEFILE,
    "Kconfig": "",
    "one.c": "one\n",
    "two.c": "two\n",
    "three.c": "three\n",
    "four.c": "four\n",
    "Documentation/devicetree/bindings/unwanted.yaml": "",
    "drivers/gpu/drm/amd/unwanted.h": "",
    "drivers/gpu/drm/Kconfig": "",
}

PATCH = """\
Subject: one becomes uno

--- a/one.c
+++ b/one.c
@@ -1 +1 @@
-one
+uno
"""


def make_package(directory: Path) -> Path:
    """Make linux-source-7.3_7.3.4-1~bpo13+1_all.deb in *directory*."""
    tree = directory / "linux-source-7.3"
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    package = directory / "package"
    (package / "usr/src").mkdir(parents=True)
    (package / "DEBIAN").mkdir()
    (package / "DEBIAN/control").write_text(
        "Package: linux-source-7.3\nVersion: 7.3.4-1~bpo13+1\nArchitecture: all\n"
        "Maintainer: nobody <nobody@localhost>\nDescription: a test\n"
    )
    archive = package / "usr/src/linux-source-7.3.tar.xz"
    subprocess.run(["tar", "-cJf", archive, "-C", directory, tree.name], check=True)
    deb = directory / "linux-source-7.3_7.3.4-1~bpo13+1_all.deb"
    subprocess.run(["dpkg-deb", "-b", package, deb], check=True, stdout=subprocess.DEVNULL)
    return deb
