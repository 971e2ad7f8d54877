# Installs what building and testing need and this machine lacks. Debian and Ubuntu.
#
#     . docs/deploy/prepare.sh
#
# It is sourced, so that a Rust that it installs is found by what follows; therefore it neither
# exits nor changes the shell's options. Where everything is there, it does nothing and says so.
#
# g++ and cmake compile llama.cpp; libclang reads its headers; pip brings the default model; venv
# holds the Python clients of the tests; curl is for trying the daemon out, and it, openssl, zstd
# and nghttp are peers in the tests.

autoglmd_prepare() {
    # A dry word for each package: its name is all that dpkg needs.
    autoglmd_missing=""
    for autoglmd_package in g++ make cmake libclang-dev python3-pip python3-venv curl openssl zstd nghttp2-client git ca-certificates; do
        dpkg-query -W -f '${Status}' "$autoglmd_package" 2>/dev/null | grep -q 'ok installed' ||
            autoglmd_missing="$autoglmd_missing $autoglmd_package"
    done
    if [ -n "$autoglmd_missing" ]; then
        echo "installing:$autoglmd_missing"
        autoglmd_root=""
        [ "$(id -u)" -eq 0 ] || autoglmd_root="sudo"
        $autoglmd_root apt-get update -qq || return
        # Word splitting is what is wanted here, in every shell that may source this.
        echo "$autoglmd_missing" |
            DEBIAN_FRONTEND=noninteractive xargs $autoglmd_root apt-get install -qqy >/dev/null ||
            return
    fi
    if ! command -v cargo >/dev/null; then
        echo "installing Rust for this user, in ~/.cargo"
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y --profile default --no-modify-path || return
        . "$HOME/.cargo/env"
    fi
    echo "prepared: $(cargo --version), $(cmake --version | head -n 1), $(g++ --version | head -n 1)"
}

autoglmd_prepare
