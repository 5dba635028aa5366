#!/usr/bin/env bash
# The table of docs/GPU.md: prompt and decode speed of a mixture on a machine with a GPU, stock and streamed, alternatives interleaved.
#
#   gpu.sh BIN MODEL PROMPT.txt [REPEATS [TOKENS [ROWS]]]
#
# BIN has the programs of `make llama CMAKE_ARGS=-DGGML_CUDA=ON`. ROWS is a regular expression that chooses rows by their names. Each
# run prints a line with its text's checksum; the table of medians follows. "CPU only" is what libhypura did before it used GPUs.
set -u
bin=$1 model=$2 prompt=$3 repeats=${4:-3} tokens=${5:-128} rows=${6:-.}
export LD_LIBRARY_PATH=$bin${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# row NAME [VARIABLE=VALUE...] [FLAG...]: one run of a row, its speeds kept for the table
row() {
    local name=$1 variables=()
    shift
    [[ $name =~ $rows ]] || return 0
    while [[ ${1:-} == [A-Z]*=* ]]; do variables+=("$1"); shift; done
    env "${variables[@]}" timeout 150 "$bin/llama-completion" -m "$model" -f "$prompt" -n "$tokens" --temp 0 --ignore-eos -no-cnv \
        --no-repack --no-warmup -c 2048 -ngl 99 "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
    local status=$? speed='s/.*, *\([0-9.]*\) tokens per second.*/\1/p'
    local prompt_speed decode_speed
    prompt_speed=$(grep 'prompt eval time' "$scratch/err" | sed -n "$speed")
    decode_speed=$(grep ' eval time' "$scratch/err" | grep -v prompt | sed -n "$speed")
    echo "$name | status $status | text $(md5sum <"$scratch/out" | cut -c1-8) | prompt $prompt_speed | decode $decode_speed"
    [ "$status" -eq 0 ] || grep -a -i 'hypura\|error' "$scratch/err" | tail -5
    echo "$name|$prompt_speed|$decode_speed" >>"$scratch/table"
}

for ((repeat = 0; repeat < repeats; repeat++)); do
    row 'stock, all on the GPU' HYPURA=off
    row 'stock, experts in pinned RAM' HYPURA=off --cpu-moe -lm none
    row 'stock, pinned, cache 2048 MiB' HYPURA=off --cpu-moe -lm none --moe-cache-mib 2048
    row 'stock, pinned, cache 4096 MiB' HYPURA=off --cpu-moe -lm none --moe-cache-mib 4096
    row 'CPU only, RAM 3200M' GGML_OP_OFFLOAD_MIN_BATCH=1000000 HYPURA=stream HYPURA_RAM=3200M HYPURA_VRAM=off --cpu-moe
    row 'RAM 3200M' HYPURA=stream HYPURA_RAM=3200M HYPURA_VRAM=off --cpu-moe
    row 'RAM 3200M, VRAM 2G' HYPURA=stream HYPURA_RAM=3200M HYPURA_VRAM=2G --cpu-moe
    row 'RAM 3200M, VRAM 4G' HYPURA=stream HYPURA_RAM=3200M HYPURA_VRAM=4G --cpu-moe
    row 'RAM 9G' HYPURA=stream HYPURA_RAM=9G HYPURA_VRAM=off --cpu-moe
    row 'RAM 9G, VRAM 2G' HYPURA=stream HYPURA_RAM=9G HYPURA_VRAM=2G --cpu-moe
    row 'RAM 9G, user cache 2048 MiB' HYPURA=stream HYPURA_RAM=9G --cpu-moe --moe-cache-mib 2048
    row 'RAM 3200M, VRAM auto' HYPURA=stream HYPURA_RAM=3200M --cpu-moe
done

echo
echo '| | prompt, tokens/s | decode, tokens/s |'
echo '|---|---|---|'
median() { sort -n | awk '{ values[NR] = $1 } END { if (NR) print (values[int((NR + 1) / 2)] + values[int(NR / 2) + 1]) / 2 }'; }
cut -d'|' -f1 "$scratch/table" | awk '!seen[$0]++' | while read -r name; do
    lines=$(grep -F "$name|" "$scratch/table" | awk -F'|' -v name="$name" '$1 == name')
    echo "| $name | $(cut -d'|' -f2 <<<"$lines" | median) | $(cut -d'|' -f3 <<<"$lines" | median) |"
done
