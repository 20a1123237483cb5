#!/usr/bin/env bash
# One call on a machine with a CUDA GPU and a python3 of its own that has PyTorch and transformers; no network needed.
#
#   bash benchmarks/gpu.sh [--out DIR]
#
# holds every operation to its definition on the GPU (the tests marked `gpu`), learns the reference work there, and
# sets plans beside what runs take, and measures LoRA and QLoRA of a Mistral-7B-shaped model beside other trainers;
# writes DIR/gpu_check.md, DIR/plan_accuracy_gpu.md and DIR/gpu_speed.json (benchmarks/results/). At most nine minutes.
#   PYTHON=...   another Python
#   WHEELS=DIR   wheels of what that Python lacks (peft, bitsandbytes, liger-kernel, trl, unsloth …), put into a
#                temporary folder for this call
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
fi
export PYTHONPATH="$PWD/src:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" benchmarks/gpu_check.py "$@" || echo "gpu_check.py failed; going on" >&2
"$python" benchmarks/plan_accuracy.py --only 12 "$@" || echo "plan_accuracy.py failed; going on" >&2
"$python" benchmarks/gpu_speed.py "$@"
