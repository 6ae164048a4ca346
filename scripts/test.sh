#!/usr/bin/env bash
# Runs the tests on a real server: installs redis-server first if there is none.
#
#   scripts/test.sh -p proof --test it faults    # some of them: the arguments go to cargo test
#   scripts/test.sh -p locking-worker            # those of the command line
#   PROPTEST_CASES=10000 scripts/test.sh         # a longer search for differences between the stores
#
# Those of TLS, unix sockets and JSON need features of the library: .ci/run, in the repository, names
# them.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/install.sh

has_server() {
    command -v redis-server >/dev/null || command -v valkey-server >/dev/null
}

if ! has_server; then
    echo "scripts/test.sh: no redis-server or valkey-server on PATH, installing one"
    install_package redis-server redis redis redis ||
        install_package valkey-server valkey valkey valkey
fi
if ! has_server; then
    echo "scripts/test.sh: found no redis-server, and none of apt-get, dnf, apk and brew gave one." >&2
    echo "Install Redis 7.0 or later, or Valkey 7.2 or later, and run this again." >&2
    exit 1
fi

if [ $# -gt 0 ]; then
    exec cargo test --locked "$@"
fi
# The library by itself first: the others have features of it.
cargo test --locked
cargo test --locked -p proof -p locking-worker
