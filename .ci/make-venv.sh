#!/usr/bin/env bash
# Build the virtual environment from the lock files. Usage: make-venv.sh DIR
set -euo pipefail
venv=$1
wanted='import sys; raise SystemExit(not ((3, 11) <= sys.version_info[:2] <= (3, 13)))'
python=""
for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3 python; do
  if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c "$wanted" 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "Tastemaker needs Python 3.11, 3.12 or 3.13, and none is on the PATH." >&2
  echo "On Debian 12 or Ubuntu 24.04: sudo apt-get install python3 python3-venv" >&2
  exit 1
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  echo "Python $version lacks its venv module." >&2
  echo "Install it with: sudo apt-get install python$version-venv" >&2
  exit 1
fi
free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
if [ "$free_kib" -lt 4000000 ]; then
  echo "Only $((free_kib / 1024)) MiB are free here and the environment takes 2 to 6 GiB. Free some space first." >&2
  exit 1
fi
echo "Setting up $venv with Python $version (once; a few minutes)"
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c "$wanted" 2>/dev/null; then
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
# Without --no-compile all of torch's and transformers' modules are compiled here, half of the time that this takes;
# those that are ever imported are then.
# torch first and alone: a machine that has a CPU build of this very version on disk takes that one.
pip install --no-compile "$(grep '^torch==' requirements.lock)"
pip install --no-compile -r requirements.lock -r requirements-dev.lock
pip install --no-deps -r requirements-model.lock
pip install --no-deps --no-build-isolation --editable .
touch "$venv/.current"
echo "Ready: $("$venv/bin/python" -m workbench --version)"
