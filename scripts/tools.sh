#!/bin/sh
# The build and test tools, pinned, in build/venv: nothing is installed outside build/.
#
#   sh scripts/tools.sh                    install (does nothing when the pins are installed already)
#   eval "$(sh scripts/tools.sh --env)"    use them: PATH, and ccache where there is one
set -eu

tools='cmake==3.31.6
ninja==1.13.0
numpy==2.2.6
gguf==0.19.0
pytest==8.4.2
requests==2.32.5
libclang==18.1.1
ollama==0.6.3
openai==3.54.0'

repo=$(cd "$(dirname "$0")/.." && pwd -P)
venv=$repo/build/venv
cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/hypura

# What -march=native means here. ccache sees only the words "-march=native", so objects of two kinds of CPU
# must not share a cache.
native_key() {
    for flag in -march=native -mcpu=native; do
        if "${CC:-cc}" "$flag" -dM -E -x c /dev/null 2>/dev/null; then break; fi
    done | LC_ALL=C sort | cksum | { read -r sum _; printf '%08x\n' "$sum"; }
}

# One argument as a shell word.
quote() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }

print_env() {
    echo "export PATH=$(quote "$venv/bin"):\"\$PATH\""
    # The caller's make must not decide how many jobs ours run.
    echo 'unset MAKEFLAGS MFLAGS MAKELEVEL'
    if command -v ccache >/dev/null 2>&1; then
        echo "export CCACHE_DIR=$(quote "$cache/ccache-$(native_key)")"
        echo "export CCACHE_BASEDIR=$(quote "$repo") CCACHE_NOHASHDIR=1"
        echo 'export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache'
    fi
    # For bindgen, in the tests of the C header. The package has the library but not clang's own headers.
    libclang=$(ls "$venv"/lib/python3*/site-packages/clang/native/libclang.so 2>/dev/null || true)
    if [ -n "$libclang" ]; then
        echo "export LIBCLANG_PATH=$(quote "$(dirname "$libclang")")"
        echo "export BINDGEN_EXTRA_CLANG_ARGS=$(quote "-isystem $("${CC:-cc}" -print-file-name=include)")"
    fi
}

make_venv() {
    rm -rf "$venv"
    python3 -m venv "$venv" >/dev/null 2>&1 && return
    # Debian splits ensurepip off into python3-venv; a pip from elsewhere can fill a venv made without it.
    rm -rf "$venv"
    if python3 -m pip --version >/dev/null 2>&1 && python3 -m venv --without-pip "$venv" &&
        python3 -m pip --quiet --python "$venv/bin/python" install pip; then
        return
    fi
    rm -rf "$venv"
    echo 'tools.sh: python3 cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv' >&2
    exit 1
}

install_tools() {
    for command in python3 cc c++; do
        command -v "$command" >/dev/null 2>&1 || {
            echo "tools.sh: no $command; on Debian and Ubuntu: apt-get install python3 python3-venv gcc g++" >&2
            exit 1
        }
    done
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "tools.sh: python 3.10 or newer is needed, found $(python3 --version)" >&2
        exit 1
    }
    stamp="$(python3 --version)
$tools"
    if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.stamp" 2>/dev/null)" = "$stamp" ]; then
        touch "$venv/.stamp"
        return
    fi
    echo 'tools.sh: installing the pinned tools into build/venv'
    mkdir -p "$repo/build"
    make_venv
    # One word a pin, on purpose.
    # shellcheck disable=SC2086
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check install --only-binary :all: $tools || {
        echo 'tools.sh: pip could not install the pinned tools (its message is above)' >&2
        exit 1
    }
    printf '%s\n' "$stamp" >"$venv/.stamp"
}

case ${1:-} in
    '') install_tools ;;
    --env) print_env ;;
    *)
        echo 'usage: tools.sh [--env]' >&2
        exit 2
        ;;
esac
