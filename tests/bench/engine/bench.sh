#!/usr/bin/env bash
# The CPU's figures: the linear, the scheduler, and SmolLM2-135M as W4A8 (E2M1, M2, groups of 64)
# without LoRC and with ranks 8 and 32. Rounded to nearest: what the weights are does not change
# the speed. Then loads on rank 8 (load/bench.sh). With LLAMA_PYTHON, a Python that has
# llama-cpp-python, llama.cpp on the model's Q4_1 file too, in the same run.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
bin=${NIBBLE_BIN:-$here/../../../build/cpu/bin}
gguf=${NIBBLE_PREFIX:-/opt/nibble}/models/SmolLM2-135M-Instruct.Q4_1.gguf

root=$(mktemp -d "${TMPDIR:-/tmp}/nibble-bench.XXXXXX")
daemon=
stop() {
  if [ -n "$daemon" ]; then
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    daemon=
  fi
}
trap 'stop; rm -rf "$root"' EXIT

"$bin/nibble" import gguf "$gguf" smollm2 --data-root "$root" > /dev/null
"$bin/nibbled" --data-root "$root" --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 \
  > "$root/nibbled.out" 2> "$root/nibbled.err" &
daemon=$!
for _ in $(seq 600); do
  if grep -q '^listening ' "$root/nibbled.out"; then break; fi
  kill -0 "$daemon"
  sleep 0.1
done
server=$(sed -n 's/^listening grpc=\([^ ]*\).*/\1/p' "$root/nibbled.out")
for rank in 0 8 32; do
  "$bin/nibble" --server "$server" jobs submit --model smollm2 --output "w4a8-lorc$rank" \
    --weights e2m1 --activations e4m3 --group-size 64 --scale m2 --method rtn \
    --lorc-rank "$rank" --wait > /dev/null
done
stop

"$bin/linear_bench"
echo
"$bin/scheduler_bench"
for rank in 0 8 32; do
  echo
  (cd "$root/artifacts" && "$bin/generate_bench" "w4a8-lorc$rank")
done
echo
"$here/../load/bench.sh" "$root/artifacts/w4a8-lorc8"
if [ -n "${LLAMA_PYTHON:-}" ]; then
  echo
  "$LLAMA_PYTHON" "$here/llama_cpp_bench.py" "$gguf" --threads "$(nproc)"
fi
