#!/usr/bin/env bash
# What a release must pass beside .ci/run: each feature alone, the oldest compiler, the oldest dependencies, licences,
# the public interface, and the package itself. Installs the tools that are missing, which takes some minutes.
#
#   scripts/release.sh          # all of it
#   scripts/release.sh msrv     # one of: features msrv minimal deny semver package
set -euo pipefail
cd "$(dirname "$0")/.."

tool() {
    command -v "$1" >/dev/null || cargo install --locked "$1"
}

# All but native-tls, which needs OpenSSL of the system. enable-rustls needs a C compiler.
features=json,tracing,metrics,enable-rustls,enable-rustls-ring,unix-sockets,sentinel-auth,credential-provider

# Each by itself, without the examples and tests, which use other crates' features. Not locked: without those the
# manifest is another.
features() {
    tool cargo-hack
    cargo hack check -p redis-locking-worker -p locking-worker --each-feature --exclude-features enable-native-tls \
        --no-dev-deps
}

# The compiler that Cargo.toml states.
msrv() {
    local version
    version=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    rustup toolchain install "$version" --profile minimal
    cargo "+$version" check --locked --features "$features" --target-dir target/msrv
}

# The lowest versions that Cargo.toml allows, of what it names itself. In a copy, so that Cargo.lock stays as it is.
minimal() (
    rustup toolchain install nightly --profile minimal
    copy=target/minimal
    mkdir -p "$copy"
    trap "rm -rf '$PWD/$copy'" EXIT
    git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy"
    cd "$copy"
    # Without those for tests, whose lowest versions are nobody's business.
    sed -i '/^\[dev-dependencies\]$/,/^$/d' Cargo.toml
    cargo +nightly update -Z direct-minimal-versions
    cargo check --locked --features "$features" --target-dir target
)

# Not the advisories: their database is a git repository that cannot be fetched everywhere. Where it can:
# `cargo deny check advisories`.
deny() {
    tool cargo-deny
    cargo deny --features "$features" check bans licenses sources
}

# Against the last release; before the first there is nothing to compare with.
semver() {
    if [ "$(git tag --list 'v*' | wc -l)" -eq 0 ]; then
        echo "scripts/release.sh: no release to compare the interface with"
        return
    fi
    tool cargo-semver-checks
    cargo semver-checks
}

package() {
    cargo publish --dry-run --locked -p redis-locking-worker
}

# One after the other: in a list with && a function would go on after a command that fails.
[ $# -gt 0 ] || set -- features msrv minimal deny semver package
for step; do
    case $step in
        features | msrv | minimal | deny | semver | package) "$step" ;;
        *) echo "scripts/release.sh: no such step: $step" >&2; exit 2 ;;
    esac
done
