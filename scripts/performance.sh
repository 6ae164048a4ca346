#!/usr/bin/env bash
# Runs all benchmarks, keeps what they measured as JSON lines, and draws the plots from them. Takes about
# ten minutes; nothing else should run.
#
#   scripts/performance.sh            # docs/performance.jsonl, docs/plots/*.svg
#   scripts/performance.sh --quick    # fewer samples, three minutes
set -euo pipefail
cd "$(dirname "$0")/.."

figures=$(mktemp)
trap 'rm -f "$figures"' EXIT
cargo bench --locked -p bench --no-run
for bench in cycle handoff takeover scale keys server; do
    cargo bench --locked --quiet -p bench --bench "$bench" -- "$@" | grep '^{' >>"$figures"
done
cp "$figures" docs/performance.jsonl
cargo bench --locked --quiet -p bench --bench plot
