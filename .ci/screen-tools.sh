#!/usr/bin/env bash
# What the tests on a real X server need; without it they skip. As root on Debian or Ubuntu it is installed.
set -uo pipefail
missing=""
for tool in Xvfb:xvfb xdotool:xdotool openbox:openbox import:imagemagick; do
  command -v "${tool%%:*}" >/dev/null 2>&1 || missing="$missing ${tool##*:}"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "Installing for the tests on a screen:$missing"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
fi
echo "The tests on a real screen will skip; they need: sudo apt-get install$missing"
exit 0
