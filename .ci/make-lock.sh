#!/usr/bin/env bash
# Resolve pyproject.toml in a fresh environment and write requirements.lock and requirements-dev.lock.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
names() { "$folder/venv/bin/python" -m pip freeze --exclude-editable --all | grep -v -i -E '^(pip|tastemaker|nvidia-.*|triton)( |=)' | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' | sort -f; }
pip install "$(grep -o 'torch==[0-9.]*' pyproject.toml | head -1)"
pip install "setuptools>=77"
pip install ".[engine]"
{ echo "# What Tastemaker runs on. Written by 'make lock'; edit pyproject.toml instead."; names; } > requirements.lock
pip install ".[engine,dev]"
names > "$folder/all"
{ echo "# What its tests and checks add. Written by 'make lock'."; grep -v -x -F -f requirements.lock "$folder/all"; } > requirements-dev.lock
wc -l requirements.lock requirements-dev.lock
