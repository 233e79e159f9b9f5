# Sourced by the scripts beside it: install Debian packages, and pyvmm in a virtual environment.
#
#   need_packages NAME...   install the Debian packages that are missing, with apt-get
#   need_venv [EXTRA]       install pyvmm, editable, in .venv, with the requirements of an extra
#
# PYTHON selects an interpreter other than Debian's own, for instance one of pyenv's.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv
unset PYTHONHOME PYTHONPATH # no modules from elsewhere
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

# To compile vmm._native for this machine, and for the lab's arm64 hosts.
BUILD_PACKAGES=(gcc libc6-dev libfdt-dev libseccomp2)
if [ "$(uname -m)" != aarch64 ]; then
    BUILD_PACKAGES+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
fi
if [ -z "${PYTHON:-}" ]; then
    # Not python3 on PATH, which may lack venv or the headers.
    PYTHON=/usr/bin/python3
    BUILD_PACKAGES+=(python3-venv python3-dev)
fi
LAB_PACKAGES=(debian-archive-keyring util-linux)
TEST_PACKAGES=(bc bison bsdutils curl device-tree-compiler flex git iproute2 make nodejs patch screen
    xz-utils zstd)

# Print the comment at a script's top.
usage() {
    sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p}}' "$0"
}

say() {
    printf '==> %s\n' "$*" >&2
}

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 3
}

# Run a command; show its output only if it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" -ne 0 ]; then
        tail -n 25 "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

need_packages() {
    local installed name missing=()
    command -v dpkg-query >/dev/null || die "needs Debian 12 or 13, or at least dpkg and apt-get"
    installed=" $(dpkg-query -W -f '${Package}:${db:Status-Status} ' "$@" 2>/dev/null || true)"
    for name; do
        [[ $installed == *" $name:installed "* ]] || missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            die "needs to be root, or sudo, to install: apt-get install ${missing[*]}"
        sudo -v || die "as root, install: apt-get install ${missing[*]}" # asks for the password now
    fi
    say "installing Debian packages: ${missing[*]} (a minute or two)"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300)
    # A repository that cannot be reached may not be needed.
    quietly as_root "${apt[@]}" update || say "apt-get update failed; trying with what it has"
    quietly as_root "${apt[@]}" install --no-install-recommends "${missing[@]}" ||
        die "apt-get can't install ${missing[*]}: see above"
}

# Print a hash of all that an installation depends on; if it has not changed, nothing is to do.
_venv_state() {
    (
        cd "$ROOT"
        echo "$ROOT" "$("$PYTHON" -c 'import sys; print(sys.executable, sys.version)')"
        cat pyproject.toml
        find cdefs -maxdepth 1 -type f ! -name '_*' | LC_ALL=C sort | xargs cat
    ) | sha256sum
}

need_venv() {
    (
        flock 9 # one process at a time fills the venv
        _need_venv "${1:-}"
    ) 9<"$ROOT"
}

_need_venv() {
    local extra=$1 state stamp made
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$PYTHON is no Python 3.11 or later; PYTHON=/path/to/python3 chooses another"
    state=$(_venv_state)
    for stamp in "$VENV/pyvmm-dev" "$VENV/pyvmm-$extra"; do
        if [ -f "$stamp" ] && [ "$(<"$stamp")" = "$state" ] && [ -f "$ROOT/vmm/_native.abi3.so" ]; then
            return
        fi
    done
    made=$("$VENV/bin/python" -c 'import sys; print(sys.version)' 2>/dev/null || true)
    if [ "$made" != "$("$PYTHON" -c 'import sys; print(sys.version)')" ] ||
        [ ! -x "$VENV/bin/pip" ] || ! "$VENV/bin/pip" --version >/dev/null 2>&1; then
        say "making a virtual environment in $VENV"
        quietly "$PYTHON" -m venv --clear "$VENV" || die "can't make a virtual environment"
    fi
    rm -f "$VENV"/pyvmm-*
    say "installing pyvmm${extra:+ and what its tests take} into $VENV (half a minute)"
    quietly "$VENV/bin/pip" install --quiet --editable "$ROOT${extra:+[$extra]}" ||
        die "pip can't install pyvmm: see above"
    echo "$state" >"$VENV/pyvmm-$extra"
}
