#!/usr/bin/env bash
# One command for a machine with a CUDA GPU and a python3 with PyTorch and transformers; it needs no network.
#
#   bash benchmarks/gpu.sh [--out DIR]
#
# Four parts, each stopped after a fixed time; together at most nine minutes:
#   check       every operation and the generation engine against their definitions on the GPU (the tests marked `gpu`),
#               and the reference task trained there          DIR/gpu_check.md
#   plans       plans compared with runs                      DIR/plan_accuracy_gpu.md
#   generation  tokens per second of the engine, with and without CUDA graphs, beside transformers' generate, for a
#               Mistral-7B-sized model                        DIR/gpu_generation.json, .md
#   speed       LoRA and QLoRA of a model of that size beside other trainers
#                                                             DIR/gpu_speed.json
# DIR is benchmarks/results by default.
#   PARTS="check generation"   only these
#   PYTHON=...                 another Python
#   WHEELS=DIR                 wheels of packages that this Python does not have (peft, bitsandbytes, liger-kernel, trl,
#                              unsloth …), installed into a temporary directory for this call
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
fi
export PYTHONPATH="$PWD/src:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=""

# part NAME SECONDS SCRIPT [OPTION ...]
part() {
  local name=$1 seconds=$2
  shift 2
  case " ${PARTS:-check plans generation speed} " in *" $name "*) ;; *) return 0 ;; esac
  timeout "$seconds" "$python" "$@" || { echo "$name failed, or took more than $seconds s; continuing" >&2; failed+=" $name"; }
}

part check 200 benchmarks/gpu_check.py "$@"
part plans 60 benchmarks/plan_accuracy.py --only 12 "$@"
part generation 100 benchmarks/gpu_generation.py --budget 70 "$@"
part speed 170 benchmarks/gpu_speed.py --budget 130 "$@"
if [ -n "$failed" ]; then
  echo "failed:$failed" >&2
  exit 1
fi
