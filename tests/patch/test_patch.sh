#!/bin/sh
# The patch series on a pristine llama.cpp tree: applies, applies again as a no-op, comes out without a trace, is
# refused whole where it does not fit, and stays small. So it does on the newest version that patches/VERSIONS lists.
set -eu

[ $# -eq 2 ] || { echo 'usage: test_patch.sh PRISTINE_TREE NEWEST_TREE' >&2; exit 2; }
repo=$(cd "$(dirname "$0")/../.." && pwd -P)
pristine=$(cd "$1" && pwd -P)
newest=$(cd "$2" && pwd -P)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
tree=$scratch/tree
apply() { sh "$repo/scripts/apply_patches.sh" "$@"; }
# The streaming patches, and the optional ones: for tools, for GPUs, which feeds a cache that is llama.cpp's own, and for other machines.
added_limit=90
optional_limit=220
passed=0
failed=0

check() {
    name=$1
    shift
    if "$@" >"$scratch/log" 2>&1; then
        passed=$((passed + 1))
        echo "ok   $name"
    else
        failed=$((failed + 1))
        echo "FAIL $name"
        head -n 40 "$scratch/log" | sed 's/^/     /'
    fi
}

same_tree() { diff -r "$1" "$2"; }
# Nothing written, so nothing rebuilt.
no_op() {
    touch "$scratch/mark"
    sleep 1
    apply "$tree" || return 1
    written=$(find "$tree" -newer "$scratch/mark")
    echo "$written"
    [ -z "$written" ]
}
linked() { [ "$(readlink "$tree/ggml/src/ggml-hypura")" = "$repo/ggml-hypura" ]; }
# Added lines of the patches that have, or lack, the field Optional.
added() { grep "$1" '^Optional:' "$repo"/patches/*.patch | xargs cat /dev/null | grep -c -E '^\+([^+]|$)' || true; }
small() {
    required=$(added -L) optional=$(added -l)
    echo "$required and $optional lines added, fewer than $added_limit and $optional_limit wanted"
    [ "$required" -lt "$added_limit" ] && [ "$optional" -lt "$optional_limit" ]
}
described() {
    for patch in "$repo"/patches/*.patch; do
        for field in Description Origin Forwarded Last-Update; do
            grep -q "^$field:" "$patch" || { echo "$(basename "$patch") has no field $field"; return 1; }
        done
    done
}
# A tree in which the first patched file has other content must be refused and left as it is.
refused() {
    file=$(sed -n 's|^--- a/||p' "$repo"/patches/*.patch | head -n 1 | cut -f 1)
    sed 's/^/x/' "$pristine/$file" >"$tree/$file"
    rm -rf "$scratch/before"
    cp -R "$tree" "$scratch/before"
    if apply "$tree"; then echo 'applied to a tree that it does not fit'; return 1; fi
    same_tree "$scratch/before" "$tree"
}

# On the pinned version, and on the newest, none is left out, optional or not.
whole() { [ "$(apply --check "$tree" 2>&1)" = "$count of $count patches are applied; the series fits" ]; }
# A copy of ours, whose series may be changed.
make_other() {
    other=$scratch/other
    rm -rf "$other"
    mkdir -p "$other/patches"
    cp -R "$repo/scripts" "$repo/ggml-hypura" "$other"
    cp "$repo"/patches/*.patch "$other/patches"
}
# An optional patch that does not fit is left out of whatever is done, and told.
leaves_out() {
    make_other
    printf 'Optional: nothing is missed\n\n--- a/CMakeLists.txt\n+++ b/CMakeLists.txt\n@@ -1 +1 @@\n-no such line\n+another\n' \
        >"$other/patches/0009-does-not-fit.patch"
    for verb in '' --check '' --reverse; do
        # shellcheck disable=SC2086
        sh "$other/scripts/apply_patches.sh" $verb "$tree" >"$scratch/said" 2>&1 || { cat "$scratch/said"; return 1; }
        cat "$scratch/said"
        grep -q '0009-does-not-fit.patch (nothing is missed)' "$scratch/said" || return 1
        grep -q " $count patches" "$scratch/said" || return 1
    done
    same_tree "$pristine" "$tree"
}
# An earlier series lacked a patch, which goes in between the others; nothing is said to be left out.
completes() {
    for missing in "$repo"/patches/*.patch; do
        grep -q '^Optional:' "$missing" || continue
        make_other
        rm "$other/patches/$(basename "$missing")"
        sh "$other/scripts/apply_patches.sh" "$tree" || return 1
        [ "$(apply "$tree" 2>&1)" = "applied 1 of $count patches, $((count - 1)) were applied already" ] || return 1
        whole && apply --reverse "$tree" && same_tree "$pristine" "$tree" || return 1
    done
}
# One that an earlier series had in other words is neither taken for one that is there nor for one that does not fit: the tree stays as it is.
names_what_is_left() {
    for changed in "$repo"/patches/*.patch; do
        grep -q '^+.*hypura' "$changed" || continue
        make_other
        sed '/^+.*hypura/s/$/ \/\/ earlier/' "$changed" >"$other/patches/$(basename "$changed")"
        sh "$other/scripts/apply_patches.sh" "$tree" || return 1
        rm -rf "$scratch/before"
        cp -R "$tree" "$scratch/before"
        for verb in '' --check --reverse; do
            # shellcheck disable=SC2086
            if apply $verb "$tree" >"$scratch/said" 2>&1; then echo "$verb did not fail"; return 1; fi
            grep -q "has lines of the series that do not come out" "$scratch/said" || { cat "$scratch/said"; return 1; }
            same_tree "$scratch/before" "$tree" || return 1
        done
        sh "$other/scripts/apply_patches.sh" --reverse "$tree" && same_tree "$pristine" "$tree" || return 1
    done
}

count=$(cat /dev/null "$repo"/patches/*.patch | grep -c '^Description:' || true)
cp -R "$pristine" "$tree"
check 'leaves out an optional patch that does not fit' leaves_out
check 'completes an earlier series that lacked a patch' completes
check 'names what is left of an earlier series' names_what_is_left
check 'applies' apply "$tree"
check 'applies whole' whole
check 'links ggml-hypura' linked
check 'applies again as a no-op' no_op
check 'check passes' apply --check "$tree"
check 'comes out' apply --reverse "$tree"
check 'leaves no trace' same_tree "$pristine" "$tree"
check 'comes out again as a no-op' apply --reverse "$tree"
check 'adds few lines' small
if ls "$repo"/patches/*.patch >/dev/null 2>&1; then
    check 'is described' described
    check 'is refused whole where it does not fit' refused
else
    echo 'SKIP the series is empty: nothing to describe or to refuse'
fi

rm -rf "$tree"
cp -R "$newest" "$tree"
check 'applies to the newest version' apply "$tree"
check 'applies whole to the newest version' whole
check 'comes out of the newest version' apply --reverse "$tree"
check 'leaves no trace in the newest version' same_tree "$newest" "$tree"

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
