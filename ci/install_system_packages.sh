#!/usr/bin/env bash
# Makes sure that what pip cannot bring is there: a C++20 compiler, make, libpython (Triton's python backend embeds it),
# and three header libraries. Installs it through apt where that is allowed, else says in one line what is missing.
set -euo pipefail
python=${1:-python3}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

case $version in
  3.10 | 3.11 | 3.12) ;;
  *) echo "Python $version does not do: make PYTHON=python3.12 (or 3.10, 3.11)." >&2; exit 1 ;;
esac

missing=()
need() { missing+=("$1"); }
command -v g++ >/dev/null || need g++
[ -e /usr/include/nlohmann/json.hpp ] || need nlohmann-json3-dev
[ -d /usr/include/valijson ] || need libvalijson-dev
[ -e /usr/include/gtest/gtest.h ] || need libgtest-dev
"$python" -c 'import venv, ensurepip' 2>/dev/null || need "python$version-venv"
"$python" - <<'PY' || need "python$version-dev"
import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h").exists())
PY
"$python" - <<'PY' || need "libpython$version"
import ctypes, pathlib, sys, sysconfig
name = "libpython%d.%d.so.1.0" % sys.version_info[:2]
if (pathlib.Path(sysconfig.get_config_var("LIBDIR") or "/nowhere") / name).exists():
    sys.exit(0)
try:
    ctypes.CDLL(name)
except OSError:
    sys.exit(1)
PY
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=(env DEBIAN_FRONTEND=noninteractive)
[ "$(id -u)" -eq 0 ] || as_root=(sudo -n "${as_root[@]}")
if command -v apt-get >/dev/null && { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; }; then
  echo "Installing Debian packages: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -y -qq "${missing[@]}" >/dev/null
else
  echo "Missing system packages: install ${missing[*]} (Debian names) and run make again." >&2
  exit 1
fi
