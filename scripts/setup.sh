#!/bin/sh
# Makes a checkout ready on Debian 12: the Debian packages that are missing, a virtual environment, all dependencies.
#
# Needs root (or sudo) only if a Debian package is missing. Running it again costs nothing but a look: the Makefile
# runs it when .venv/.ready is older than what it depends on. Output of pip and apt goes to build/setup.log and is shown only if
# something fails.
set -eu
cd "$(dirname "$0")/.."
mkdir -p build
log=build/setup.log
: >"$log"

fail() {
    tail -n 30 "$log" >&2
    echo "setup: $1" >&2
    exit 1
}

python=${PYTHON:-python3}

# What a package is needed for, asked of the thing itself and not of dpkg: a Python built by hand is as good as Debian's.
missing=
need() { # need PACKAGE COMMAND...: the package is missing if the command fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
need python3 "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'
need python3-venv "$python" -c 'import ensurepip, venv'
need python3-dev "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_paths()["include"] + "/Python.h")'
need gcc command -v gcc
need libc6-dev test -e /usr/include/stdio.h
need pkg-config command -v pkg-config
need libfuse3-dev pkg-config --exists fuse3
need fuse3 command -v fusermount3
need attr command -v setfattr
need acl command -v setfacl
need rsync command -v rsync
need git command -v git
need iproute2 command -v ip
need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt

if [ -n "$missing" ]; then
    sudo=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 ||
            fail "run as root, or first let root do: apt-get install$missing"
        sudo=sudo
    fi
    echo "setup: installing$missing"
    install() {
        # shellcheck disable=SC2086  # a list of words on purpose
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >>"$log" 2>&1
    }
    # A fresh machine has no package lists, an old one stale ones: both are mended by an update.
    install || { $sudo apt-get update >>"$log" 2>&1 && install; } ||
        fail "apt-get could not install$missing (full output: $log)"
fi

if ! [ -x .venv/bin/python ] || ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    echo "setup: creating .venv"
    rm -rf .venv
    "$python" -m venv .venv >>"$log" 2>&1 || fail "no virtual environment could be made in .venv (full output: $log)"
fi
echo "setup: installing Python packages"
# compat: a plain path instead of an import hook, which every start of every process would pay for.
.venv/bin/python -m pip install --disable-pip-version-check --config-settings editable_mode=compat -e '.[dev]' >>"$log" 2>&1 ||
    fail "pip could not install the dependencies (full output: $log)"
touch .venv/.ready
