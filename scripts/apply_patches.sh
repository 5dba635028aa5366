#!/bin/sh
# Puts the series patches/*.patch and a link to ggml-hypura/ into a llama.cpp tree, or takes them out.
#
#   apply_patches.sh TREE              apply what is not applied yet
#   apply_patches.sh --reverse TREE    take out what is applied
#   apply_patches.sh --check TREE      change nothing; fail unless the series is applied or would apply
#
# The whole series is tried on copies of the files that it touches: TREE changes only when all of it succeeds.
set -eu

die() { echo "apply_patches.sh: $*" >&2; exit 1; }

verb=apply
case ${1:-} in
    --reverse) verb=reverse; shift ;;
    --check) verb=check; shift ;;
esac
[ $# -eq 1 ] || die 'usage: apply_patches.sh [--reverse|--check] TREE'
[ -f "$1/ggml/src/CMakeLists.txt" ] || die "$1 is not a llama.cpp tree"

repo=$(cd "$(dirname "$0")/.." && pwd -P)
tree=$(cd "$1" && pwd -P)
link=$tree/ggml/src/ggml-hypura
scratch=$(mktemp -d)
scratch=$(cd "$scratch" && pwd -P)
trap 'rm -rf "$scratch"' EXIT
work=$scratch/work
log=$scratch/log

LC_ALL=C
export LC_ALL
set -- "$repo"/patches/*.patch
[ -e "$1" ] || shift

tab=$(printf '\t')
touched() {
    cat /dev/null "$@" | sed -n -e '/^--- \/dev\/null/d' -e '/^+++ \/dev\/null/d' -e "s/$tab.*//" \
        -e 's|^--- [^/]*/||p' -e 's|^+++ [^/]*/||p' | sort -u
}
touched "$@" >"$scratch/files"

# Not patch: it takes fewer lines of context before a change than after it for the beginning of a file.
command -v git >/dev/null 2>&1 || die 'git is missing: install it'
# Inside a repository git apply would silently skip files: keep it from finding one.
patch_one() { (cd "$work" && GIT_CEILING_DIRECTORIES=$scratch git apply --whitespace=nowarn ${2:+-R} "$1"); }

stage() {
    rm -rf "$work"
    mkdir "$work"
    while read -r file; do
        if [ -e "$tree/$file" ]; then
            mkdir -p "$work/$(dirname "$file")"
            cp -p "$tree/$file" "$work/$file"
        fi
    done <"$scratch/files"
}

# Makes TREE's files those in $1.
publish() {
    while read -r file; do
        if [ ! -e "$1/$file" ]; then
            rm -f "$tree/$file"
            (cd "$tree" && rmdir -p "$(dirname "$file")" 2>/dev/null) || true
        elif ! cmp -s "$1/$file" "$tree/$file"; then
            mkdir -p "$tree/$(dirname "$file")"
            cp "$1/$file" "$tree/$file"
        fi
    done <"$scratch/files"
}

# Whether the tree may go without a patch: its description says what is missed then.
is_optional() { grep -q '^Optional: ' "$1"; }

# refuse PATCH: it does not go in.
refuse() {
    {
        echo "apply_patches.sh: $(basename "$1") does not apply to $tree:"
        sed 's/^/    /' "$log"
        if [ -n "$left" ]; then
            echo "${left#./} has lines of the series that do not come out: they are an earlier version's, or were changed since. Take them"
            echo "out with the scripts/apply_patches.sh --reverse of the libhypura that put them in, or get the tree anew."
        else
            echo "The series is made for the version in patches/UPSTREAM. Is the tree that version, without local changes?"
            echo "To make the patch anew: put its changes into a copy of build/llama-pristine by hand, then"
            echo "    diff -ruN --exclude=ggml-hypura llama-pristine COPY    (in build/)"
            echo "and keep the description at the head of the patch."
        fi
    } >&2
    exit 1
}

# What is in TREE comes out, the last first. Any may be missing: an earlier series did not have it, or left it out.
stage
present=' '
position=$#
while [ "$position" -gt 0 ]; do
    eval "patch=\${$position}"
    if patch_one "$patch" reverse >/dev/null 2>&1; then present="$present$(basename "$patch") "; fi
    position=$((position - 1))
done
bare=$scratch/bare
cp -Rp "$work" "$bare"
# llama.cpp has no such word: a file of what is left of another series.
left=$(cd "$bare" && grep -rli hypura . | sort | sed 1q)

# Then all go in. An optional one that does not is left out.
count=0
applied=0
for patch; do
    name=$(basename "$patch")
    if patch_one "$patch" >"$log" 2>&1; then
        count=$((count + 1))
        case $present in *" $name "*) applied=$((applied + 1)) ;; esac
    elif [ -z "$left" ] && is_optional "$patch"; then
        echo "apply_patches.sh: left out, it does not fit this tree: $name ($(sed -n 's/^Optional: //p' "$patch"))" >&2
    else
        refuse "$patch"
    fi
done

if [ -e "$link" ] && [ ! -L "$link" ]; then die "$link is in the way: it should be a link"; fi

case $verb in
    check) echo "$applied of $count patches are applied; the series fits" ;;
    apply)
        publish "$work" # which holds the tree's files with the whole series
        [ "$(readlink "$link" 2>/dev/null || true)" = "$repo/ggml-hypura" ] || {
            rm -f "$link"
            ln -s "$repo/ggml-hypura" "$link"
        }
        echo "applied $((count - applied)) of $count patches, $applied were applied already"
        ;;
    reverse)
        publish "$bare"
        rm -f "$link"
        echo "took out $applied of $count patches"
        ;;
esac
