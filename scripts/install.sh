# Sourced by the scripts that need a program that may not be there.

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "$0: needs root to install it; run: $*" >&2
        exit 1
    fi
}

# Installs a package by the name that it has in apt, dnf, apk and brew, with the one of them that there is.
install_package() {
    if command -v apt-get >/dev/null; then
        as_root apt-get update -q &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$1"
    elif command -v dnf >/dev/null; then
        as_root dnf install -qy "$2"
    elif command -v apk >/dev/null; then
        as_root apk add --quiet "$3"
    elif command -v brew >/dev/null; then
        brew install "$4"
    fi
}
