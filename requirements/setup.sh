#!/usr/bin/env bash
# Makes the virtual environment VENV (default .venv) from the lock file of the Python at hand, or leaves a finished one alone.
# Stamps are written last and name what was installed from, so what an interrupted run left half-made is made again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

fail() { echo "setup: $1" >&2; exit 1; }
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

python=${PYTHON:-}
if [ -n "$python" ]; then
  version=$(version_of "$python") || fail "PYTHON=$python does not run; name a Python 3.11 or 3.12"
else
  # `python3` first: it is the one that the machine's owner chose.
  for candidate in python3 python3.11 python3.12 python; do
    version=$(version_of "$candidate") || continue
    if [ -f "requirements/python$version.lock" ]; then python=$candidate; break; fi
  done
  [ -n "$python" ] || fail "no Python 3.11 or 3.12 on PATH; install one or name it: make demo PYTHON=/path/to/python3.12"
fi
lock=requirements/python$version.lock
[ -f "$lock" ] || fail "Python $version has no lock file $lock; use Python 3.11 or 3.12, such as: make demo PYTHON=python3.12"

# What each of the two steps was made from.
packages="$("$python" -c 'import sys; print(sys.version, sys.base_prefix)') $PWD $(cksum <"$lock")"
project="$(cksum <pyproject.toml)"
done_packages() { [ "$(cat "$venv/.packages" 2>/dev/null)" = "$packages" ] && "$venv/bin/python" -c '' 2>/dev/null; }
done_project() { [ "$(cat "$venv/.project" 2>/dev/null)" = "$project" ] && [ -x "$venv/bin/exegpt" ]; }
done_packages && done_project && exit 0

install_packages() {
  rm -f "$venv/.packages" "$venv/.project"
  "$python" -m venv --clear "$venv" &&
    "$venv/bin/python" -m pip install --quiet --require-hashes --no-deps -r "$lock" &&
    printf '%s\n' "$packages" >"$venv/.packages"
}
install_project() {
  "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable . &&
    printf '%s\n' "$project" >"$venv/.project"
}

"$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python has no venv module; on Debian: apt install python$version-venv"
log=$(mktemp)
# A dot every few seconds: quiet, but alive.
(while sleep 3; do printf '.'; done) &
dots=$!
trap 'kill "$dots" 2>/dev/null || true; rm -f "$log"' EXIT
run() {
  "$1" >"$log" 2>&1 </dev/null && return
  echo
  tail -n 20 "$log" >&2
  fail "could not install the packages: the lines above say why; running again starts where it stopped"
}
if ! done_packages; then
  printf 'Setting up %s with Python %s: %s packages, once ' "$venv" "$version" "$(grep -c '==' "$lock")"
  run install_packages
  echo " done."
fi
done_project || run install_project
