#!/bin/sh
# Install the named Debian packages that are not there yet. Starts no service.
set -eu

if ! command -v dpkg-query >/dev/null 2>&1; then
    # Not a Debian: what is really missing is told where it is needed.
    echo "No dpkg here: taking it that the equivalents of $* are installed." >&2
    exit 0
fi
# One at a time: a second run waits, and then finds everything there.
if command -v flock >/dev/null 2>&1; then
    mkdir -p build
    exec 9>build/.apt-lock
    flock 9
fi

missing=""
for package in "$@"; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "This machine has no apt-get: install the equivalents of$missing by hand, then run make again." >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "Missing Debian packages: run 'sudo apt-get install$missing', then make again." >&2
    exit 1
fi
echo "Debian packages:$missing ..."
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
policy=""
trap 'rm -f "$log" $policy' EXIT
# A policy that forbids starting services while they are installed: the tests
# start their own, on their own ports.
policy=/usr/sbin/policy-rc.d
if [ -e "$policy" ]; then
    policy=""
else
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
# shellcheck disable=SC2086
if ! { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "apt-get could not install$missing: see above, mend it, then run make again." >&2
    exit 1
fi
