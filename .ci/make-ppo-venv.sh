#!/usr/bin/env bash
# An environment for the last TRL that has PPO, on top of the one that is there. Usage: make-ppo-venv.sh VENV PPO_VENV
set -euo pipefail
venv=$1 ppo=$2
rm -rf "$ppo"
"$venv/bin/python" -m venv "$ppo"
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
"$ppo/bin/python" -c 'import sys, sysconfig; open(sysconfig.get_paths()["purelib"] + "/base.pth", "w").write(sys.argv[1])' "$packages"
"$ppo/bin/python" -m pip --quiet --disable-pip-version-check install --no-deps trl==1.12.0
touch "$ppo/.current"
