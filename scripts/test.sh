#!/usr/bin/env bash
# Runs the tests, on a real server: installs redis-server first if there is none. Those of TLS, unix sockets,
# JSON and what can be observed need features, and are run by .ci/run.
#
#   scripts/test.sh --test faults           # some of them: the arguments go to cargo test
#   PROPTEST_CASES=10000 scripts/test.sh    # a longer search for differences between the stores
set -euo pipefail
cd "$(dirname "$0")/.."

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "scripts/test.sh: needs root to install redis-server; run: $*" >&2
        exit 1
    fi
}

has_server() {
    command -v redis-server >/dev/null || command -v valkey-server >/dev/null
}

if ! has_server; then
    echo "scripts/test.sh: no redis-server or valkey-server on PATH, installing one"
    if command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        as_root apt-get update -q
        as_root apt-get install -qy --no-install-recommends redis-server
    elif command -v dnf >/dev/null; then
        as_root dnf install -qy redis || as_root dnf install -qy valkey
    elif command -v apk >/dev/null; then
        as_root apk add --quiet redis
    elif command -v brew >/dev/null; then
        brew install redis
    fi
fi
if ! has_server; then
    echo "scripts/test.sh: found no redis-server, and none of apt-get, dnf, apk and brew gave one." >&2
    echo "Install Redis 7.0 or later, or Valkey 7.2 or later, and run this again." >&2
    exit 1
fi

cargo test --locked "$@"
