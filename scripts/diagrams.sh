#!/usr/bin/env bash
# Draws docs/*.svg from docs/*.dot; installs Graphviz first if there is none.
#
# What comes out depends on the source and the version of Graphviz alone: all text is of one width, and measured
# without the fonts that there happen to be, which is what Graphviz does without its plugin for them. It is one
# <svg> without a prologue, comments, empty lines and ids, so that rustdoc takes it into a page as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/install.sh

if ! command -v dot >/dev/null; then
    echo "scripts/diagrams.sh: no dot on PATH, installing Graphviz"
    install_package graphviz graphviz graphviz graphviz
fi
if ! command -v dot >/dev/null; then
    echo "scripts/diagrams.sh: found no dot, and none of apt-get, dnf, apk and brew gave one." >&2
    exit 1
fi

plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
# It tells where its plugins are by the file that lists them.
all=$(dot -v -Tdot -o /dev/null /dev/null 2>&1 | sed -n 's|^[[:space:]]*\(/.*\)/config[^/]*$|\1|p')
ln -s "$all"/libgvplugin_core.* "$all"/libgvplugin_dot_layout.* "$plugins"
export GVBINDIR=$plugins
dot -c

for source in docs/*.dot; do
    dot -Tsvg "$source" | sed \
        -e '1,/^<svg/{/^<svg/!d}' \
        -e '/^<svg/{N;s/\n//;s/>$/ style="max-width: 100%; height: auto">/}' \
        -e '/^<!--.*-->$/d' \
        -e 's/ id="[^"]*"//' \
        -e 's/Courier,monospace/monospace/' >"${source%.dot}.svg"
done
