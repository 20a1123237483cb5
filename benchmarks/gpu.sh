#!/usr/bin/env bash
# One command for a machine with a CUDA GPU and a python3 with PyTorch and transformers; it needs no network.
#
#   bash benchmarks/gpu.sh [--out DIR]
#
# compares every operation with its definition on the GPU (the tests marked `gpu`), trains the reference task there,
# compares plans with runs, and measures LoRA and QLoRA of a Mistral-7B-sized model against other trainers; writes
# DIR/gpu_check.md, DIR/plan_accuracy_gpu.md and DIR/gpu_speed.json (benchmarks/results/). At most nine minutes.
#   PYTHON=...   another Python
#   WHEELS=DIR   wheels of packages that this Python does not have (peft, bitsandbytes, liger-kernel, trl, unsloth …),
#                installed into a temporary directory for this call
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
fi
export PYTHONPATH="$PWD/src:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" benchmarks/gpu_check.py "$@" || echo "gpu_check.py failed; continuing" >&2
"$python" benchmarks/plan_accuracy.py --only 12 "$@" || echo "plan_accuracy.py failed; continuing" >&2
"$python" benchmarks/gpu_speed.py "$@"
