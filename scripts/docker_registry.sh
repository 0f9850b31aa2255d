#!/bin/sh
# Debian's docker-registry, unpacked below .cache: the test that pushes to a registry of its makers runs it.
# Installs nothing, starts no service; where it cannot be had this ends with 0 all the same, and the test skips.
set -u
folder="$(cd "$(dirname "$0")/.." && pwd)/.cache/docker-registry"
command -v docker-registry >/dev/null 2>&1 && exit 0
[ -x "$folder/usr/bin/docker-registry" ] && exit 0
mkdir -p "$folder" && cd "$folder" || exit 0
fetch() { timeout 30 apt-get download -qq docker-registry >/dev/null 2>&1; }
{ fetch || { timeout 60 apt-get update -qq >/dev/null 2>&1 && fetch; }; } && dpkg-deb -x docker-registry_*.deb .
rm -f docker-registry_*.deb
[ -x usr/bin/docker-registry ] || echo "docker-registry cannot be had here: its test will be skipped" >&2
exit 0
