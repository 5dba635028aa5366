#!/usr/bin/env bash
# The table of docs/GPU.md: prompt and decode speed of a mixture on a machine with a GPU, stock and streamed, alternatives interleaved.
#
#   gpu.sh BIN MODEL PROMPT.txt [REPEATS [TOKENS [ROWS]]]
#
# BIN has the programs of `make llama CMAKE_ARGS=-DGGML_CUDA=ON`. ROWS is a regular expression that chooses rows by their names. Each
# run prints a line with its text's checksum; the table of medians follows, with the decode speed that was predicted in the first round, when
# nothing was known of the row. GPU_LOGS may name a folder for all logs and statistics. "CPU only" is what libhypura did before it used GPUs.
set -u
bin=$1 model=$2 prompt=$3 repeats=${4:-3} tokens=${5:-128} rows=${6:-.}
export HYPURA_DIRECT=cold # the page cache of such a machine holds the model by now
export LD_LIBRARY_PATH=$bin${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# row NAME [VARIABLE=VALUE...] [FLAG...]: one run of a row, its speeds kept for the table
row() {
    local name=$1 variables=()
    shift
    [[ $name =~ $rows ]] || return 0
    while [[ ${1:-} == [A-Z]*=* ]]; do variables+=("$1"); shift; done
    local cache=$scratch/${name//[^A-Za-z0-9]/_}
    mkdir -p "$cache" && rm -f "$scratch/stats"
    env XDG_CACHE_HOME="$cache" HYPURA_STATS="$scratch/stats" "${variables[@]}" timeout 150 "$bin/llama-completion" -m "$model" -f "$prompt" -n "$tokens" --temp 0 --ignore-eos -no-cnv \
        --no-repack --no-warmup -c 2048 -ngl 99 "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
    local status=$? speed='s/.*, *\([0-9.]*\) tokens per second.*/\1/p'
    local prompt_speed decode_speed predicted
    prompt_speed=$(grep 'prompt eval time' "$scratch/err" | sed -n "$speed")
    decode_speed=$(grep ' eval time' "$scratch/err" | grep -v prompt | sed -n "$speed")
    predicted=$(grep -o '"predicted_tokens_per_second":[0-9.]*' "$scratch/stats" 2>/dev/null | cut -d: -f2)
    echo "$name | status $status | text $(md5sum <"$scratch/out" | cut -c1-8) | prompt $prompt_speed | decode $decode_speed | predicted $predicted"
    [ "$status" -eq 0 ] || grep -a -i 'hypura\|error' "$scratch/err" | tail -5
    [ -z "${GPU_LOGS:-}" ] || cp "$scratch/err" "$GPU_LOGS/${name//[^A-Za-z0-9]/_}.$repeat.log"
    [ -z "${GPU_LOGS:-}" ] || cp "$scratch/stats" "$GPU_LOGS/${name//[^A-Za-z0-9]/_}.$repeat.json" 2>/dev/null
    echo "$name|$prompt_speed|$decode_speed|$predicted" >>"$scratch/table"
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
    row 'CPU only, RAM 16G' GGML_OP_OFFLOAD_MIN_BATCH=1000000 HYPURA=stream HYPURA_RAM=16G HYPURA_VRAM=off --cpu-moe
    row 'RAM 16G, VRAM 8G' HYPURA=stream HYPURA_RAM=16G HYPURA_VRAM=8G --cpu-moe
done

echo
echo '| | prompt, tokens/s | decode, tokens/s | predicted at first |'
echo '|---|---|---|---|'
median() { sort -n | awk '{ values[NR] = $1 } END { if (NR) print (values[int((NR + 1) / 2)] + values[int(NR / 2) + 1]) / 2 }'; }
cut -d'|' -f1 "$scratch/table" | awk '!seen[$0]++' | while read -r name; do
    lines=$(grep -F "$name|" "$scratch/table" | awk -F'|' -v name="$name" '$1 == name')
    echo "| $name | $(cut -d'|' -f2 <<<"$lines" | median) | $(cut -d'|' -f3 <<<"$lines" | median) | $(head -1 <<<"$lines" | cut -d'|' -f4) |"
done
