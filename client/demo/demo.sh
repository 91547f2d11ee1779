#!/usr/bin/env bash
# The whole path on a real model: import, quantize by a job, evaluate, stream an answer.
# `make demo` installs and builds first.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
source_root=$(cd "$here/../.." && pwd)
bin=${NIBBLE_BIN:-$source_root/build/cpu/bin}
gguf=${NIBBLE_PREFIX:-/opt/nibble}/models/SmolLM2-135M-Instruct.Q4_1.gguf
texts=$source_root/tests/fixtures/texts
window=512

root=$(mktemp -d "${TMPDIR:-/tmp}/nibble-demo.XXXXXX")
daemon=
stop() {
  if [ -n "$daemon" ]; then
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    daemon=
  fi
}
trap 'stop; rm -rf "$root"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
  echo "demo: $*" >&2
  [ ! -f "$root/nibbled.err" ] || tail -n 20 "$root/nibbled.err" >&2
  exit 1
}
say() { printf '\n== %s\n' "$*"; }
nibble() { "$bin/nibble" --server "$server" "$@"; }

# The last number of a field in lines of JSON: field NAME < FILE
field() { sed -n "s/.*\"$1\":\"\{0,1\}\([-0-9.e+]*\).*/\1/p" | tail -n 1; }

start_daemon() {
  "$bin/nibbled" --data-root "$root" --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 \
    > "$root/nibbled.out" 2> "$root/nibbled.err" &
  daemon=$!
  for _ in $(seq 600); do
    if grep -q '^listening ' "$root/nibbled.out"; then break; fi
    kill -0 "$daemon" 2>/dev/null || fail "nibbled ended before it served"
    sleep 0.1
  done
  server=$(sed -n 's/^listening grpc=\([^ ]*\).*/\1/p' "$root/nibbled.out")
  metrics=$(sed -n 's/^listening .*metrics=\([^ ]*\).*/\1/p' "$root/nibbled.out")
  [ -n "$server" ] || fail "nibbled did not serve within a minute"
}

# Prints the page of metrics, by bash alone.
scrape() {
  exec 3<> "/dev/tcp/${metrics%:*}/${metrics##*:}"
  printf 'GET /metrics HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
  cat <&3
  exec 3>&-
}

perplexity() {
  nibble evaluate perplexity --model "$1" --corpus evaluation.txt --window $window --json \
    | field perplexity
}

# A row of the table: row LABEL MODEL PERPLEXITY BYTES_OF_F16
row() {
  local model bytes bits
  model=$(nibble models get "$2" --json)
  bytes=$(field bytes <<< "$model")
  bits=$(field linear_bits_per_weight <<< "$model")
  awk -v label="$1" -v ppl="$3" -v bits="$bits" -v bytes="$bytes" -v full="$4" 'BEGIN {
    printf "%-8s %12.4f %16.3f %14d %8.2fx\n", label, ppl, bits, bytes, full / bytes }'
}

[ -x "$bin/nibbled" ] || fail "$bin/nibbled not found, expected a build (make build)"
[ -f "$gguf" ] || fail "$gguf not found (docker/install-deps --with-smollm2)"
mkdir -p "$root/models" "$root/corpora"
cp "$texts/calibration.jsonl" "$texts/evaluation.txt" "$root/corpora/"

say "import SmolLM2-135M-Instruct"
"$bin/nibble" import gguf "$gguf" smollm2 --data-root "$root"

say "start nibbled"
start_daemon
echo "grpc $server, metrics $metrics"
nibble models list

say "quantize to W4A8: E2M1 weights (M2 scales, groups of 64), E4M3 activations, GPTQ, LoRC rank 8"
nibble jobs submit --model smollm2 --output smollm2-w4a8 --weights e2m1 --activations e4m3 \
  --group-size 64 --scale m2 --method gptq --lorc-rank 8 \
  --corpus calibration.jsonl --windows 16 --window $window --wait

say "evaluate both on the same text, windows of $window tokens"
full=$(perplexity smollm2)
quantized=$(perplexity smollm2-w4a8)
[ -n "$full" ] && [ -n "$quantized" ] || fail "an evaluation gave no perplexity"
full_bytes=$(nibble models get smollm2 --json | field bytes)
printf '%-8s %12s %16s %14s %9s\n' model perplexity "bits per weight" bytes smaller
row f16 smollm2 "$full" "$full_bytes"
row W4A8 smollm2-w4a8 "$quantized" "$full_bytes"

say "chat with the W4A8 model"
nibble models load smollm2-w4a8 > /dev/null
echo "> What is gravity?"
nibble generate --model smollm2-w4a8 --chat --prompt "What is gravity?" --max-tokens 64 \
  --temperature 0 2> "$root/usage"
cat "$root/usage"

say "some metrics"
scrape > "$root/metrics"
grep '^nibble_' "$root/metrics" | grep -v -e _bucket -e '_created' | head -n 12 \
  || fail "the metrics page has no nibble_ metrics"

stop
echo
echo "demo: ok"
