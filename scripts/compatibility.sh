#!/usr/bin/env bash
# Runs the tests on newer servers, as Debian has them: fetched once into target/compatibility, and used
# from there. Nothing is installed. Remove that folder to fetch them again.
#
#   scripts/compatibility.sh                               # every test on every server
#   scripts/compatibility.sh -p proof --test it faults       # some of them: the arguments go to cargo test
#   SERVERS=sid/valkey-server scripts/compatibility.sh     # on one: the release and the package
set -euo pipefail
cd "$(dirname "$0")/.."

all="bookworm-backports/valkey-server trixie/redis-server trixie/valkey-server sid/redis-server sid/valkey-server"
read -ra servers <<<"${SERVERS:-$all}"

sources=(/etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources)
mirror=$(sed -nE 's#^(deb |URIs:).*\b(https?://[^ ]+/debian)/?( .*)?$#\2#p' "${sources[@]}" 2>/dev/null || true)
mirror=${mirror%%$'\n'*}
if [ -z "$mirror" ]; then
    echo "scripts/compatibility.sh: needs Debian, where apt's sources name a mirror (http…/debian)." >&2
    echo "Elsewhere put a newer redis-server or valkey-server on PATH and run scripts/test.sh." >&2
    exit 1
fi

# The package with all it needs, the C library too, into this folder.
fetch() {
    local release=$1 package=$2
    mkdir -p etc/apt/{apt.conf.d,preferences.d} var/lib/apt/lists/partial var/cache/apt/archives/partial
    # Backports need the release they are for.
    for from in "$release" "${release%-backports}"; do
        echo "deb [target=Packages lang=none signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $from main"
    done | sort -u >etc/apt/sources.list
    # How the machine reaches its mirror, and nothing else of its settings.
    {
        apt-config dump Acquire
        echo "Dir \"$PWD\"; Dir::State::status \"$PWD/status\"; APT::Sandbox::User \"\";"
    } >apt.conf
    : >status
    export APT_CONFIG=$PWD/apt.conf
    apt-get -qq update
    apt-get -qq install --download-only --no-install-recommends -t "$release" "$package"
    for deb in var/cache/apt/archives/*.deb; do
        dpkg -x "$deb" root
    done
    rm -r var
}

# A program of the package, run by the loader it was built for. `exec`: whoever starts it signals it.
wrap() {
    local loader libraries
    loader=$(find "$PWD/root" -type f -name 'ld-linux*.so.*' -print -quit)
    libraries=${loader%/*}:$PWD/root/usr/lib/$(basename "${loader%/*}")
    cat >"$1" <<-END
		#!/bin/sh
		exec "$loader" --argv0 "$2" --library-path "$libraries" "$PWD/root/usr/bin/$2" "\$@"
	END
    chmod +x "$1"
}

# What a started server says of itself.
info() {
    local socket
    socket=$(mktemp -u)
    bin/redis-server --port 0 --unixsocket "$socket" --save '' >/dev/null &
    until bin/redis-cli -s "$socket" ping >/dev/null 2>&1; do
        kill -0 $! # has it ended?
        sleep 0.1
    done
    bin/redis-cli -s "$socket" info server | tr -d '\r' | grep -E '^(redis_version|server_name|valkey_version):'
    bin/redis-cli -s "$socket" shutdown nosave
    wait
}

failed=()
for server in "${servers[@]}"; do
    release=${server%/*} package=${server#*/}
    folder=$PWD/target/compatibility/$release-$package
    if [ ! -x "$folder/bin/redis-server" ]; then
        rm -rf "$folder" && mkdir -p "$folder/bin"
        (
            cd "$folder"
            fetch "$release" "$package" >/dev/null
            wrap bin/redis-cli "${package%-server}-cli"
            wrap bin/redis-server "$package"
        )
    fi
    echo "== $server: $("$folder/bin/redis-server" --version)"
    (cd "$folder" && info)
    if PATH=$folder/bin:$PATH scripts/test.sh "$@"; then
        echo "== $server: passed"
    else
        echo "== $server: FAILED" && failed+=("$server")
    fi
done

[ ${#failed[@]} -eq 0 ] || { echo "failed on: ${failed[*]}" && exit 1; }
