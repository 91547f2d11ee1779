#!/usr/bin/env bash
# usage: tests/bench/load/bench.sh ARTIFACT [OUT]
#
# Loads on one model, in process and over gRPC, as tables, and in the folder OUT (build/bench) as
# load.jsonl and load.png; then what gRPC costs at 200 streams, on a model that takes no time:
# processor time a token, over one connection and over 200, less that of the engine alone.
#
# example: tests/bench/load/bench.sh artifacts/smollm2-w4a8
set -euo pipefail

case ${1:---help} in
  -h | --help) sed -n '2,/^set/{/^# \?/s///p}' "$0"; exit ;;
esac
artifact=$1
here=$(cd "$(dirname "$0")" && pwd)
build=$here/../../../build
out=${2:-$build/bench}
bin=${NIBBLE_BIN:-$build/cpu/bin}
python=${NIBBLE_PREFIX:-/opt/nibble}/client-venv/bin/python

mkdir -p "$out"
rm -f "$out/load.jsonl"
for bench in engine grpc; do
  load() {
    "$bin/${bench}_load_bench" --model "$artifact" --json "$out/load.jsonl" "$@"
    echo
  }
  load --mix 128/128 --concurrency 1,2,4,8,16
  load --mix 128/128 --rate 0.5,1 --requests 24
  load --mix 1000/1000 --concurrency 4,8 --requests 8
  load --mix 1000+128/128 --concurrency 4,8 --requests 16
done

export OMP_NUM_THREADS=1  # waiting threads would count as work
tiny=(--shape tiny --mix 128/128 --concurrency 200 --requests 2000)
"$bin/engine_load_bench" "${tiny[@]}"
for connections in 1 200; do
  echo
  echo "$connections connections:"
  "$bin/grpc_load_bench" "${tiny[@]}" --connections "$connections"
done
"$python" "$here/plot.py" "$out/load.jsonl" --out "$out/load.png" --title "$(basename "$artifact")"
echo "$out/load.png"
