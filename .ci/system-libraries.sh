#!/usr/bin/env bash
# Before the window or its tests start: are the system libraries of Qt here? Usage: system-libraries.sh PYTHON
# As root on Debian or Ubuntu it installs what is missing; otherwise it names the exact command and stops.
set -uo pipefail
missing=$("$1" -m workbench.qt_check)
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "Installing the system libraries that Qt needs: $missing"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
fi
echo "Qt cannot start: system libraries are missing." >&2
echo "Install them with: sudo apt-get install $missing" >&2
exit 1
