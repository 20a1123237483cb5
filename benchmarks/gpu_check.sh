#!/usr/bin/env bash
# One call on a machine with a CUDA GPU and a python3 of its own that has PyTorch and transformers; no network needed.
#
#   bash benchmarks/gpu_check.sh [--rows ROWS.jsonl --name NAME] [--steps N] [--out DIR]
#
# runs the tests marked `gpu` and the reference work on the GPU, and writes DIR/gpu_check.md (benchmarks/results/).
#   PYTHON=...   another Python
#   WHEELS=DIR   wheels of what that Python lacks, put into a temporary folder for this call
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
fi
export PYTHONPATH="$PWD/src:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" benchmarks/gpu_check.py "$@"
