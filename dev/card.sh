#!/usr/bin/env bash
# Runs everything that needs a GPU, the most important first; each result is written as soon as it is complete.
#
#   bash dev/card.sh OUT REPOSITORY [SECONDS] [STYLE]
#
# OUT         folder for logs, JSON documents and results.tgz
# REPOSITORY  models exported for TensorRT: starry-night-fast, starry-night, gallery (nst export --device gpu)
# SECONDS     time limit (600); a step that no longer fits is skipped
# STYLE       style image of starry-night-fast, for the speed-up at equal loss
#
# Environment variables:
# OTHERS      further repositories to measure, such as models for ONNX Runtime CUDA (nst export --for gpu) and for its
#             TensorRT provider (nst export --for tensorrt --target onnx)
# BACKENDS    backend folder of a tritonserver in PATH, to which the engines of this checkout are copied
set -uo pipefail
out=$1 repository=$2 end=$((SECONDS + ${3:-600})) style=${4:-}
mkdir -p "$out"
export COLUMNS=150
for backend in onnxruntime tensorrt; do
  [ -z "${BACKENDS:-}" ] || { mkdir -p "$BACKENDS/$backend" && cp -r core/nst_core/engines server/nst_server/backends/{backend_common.py,"$backend"/*.py} "$BACKENDS/$backend/"; }
done

step() { # time limit in seconds, name, command
  local limit=$1 name=$2 have=$((end - SECONDS)) begun=$SECONDS; shift 2
  [ "$have" -lt 20 ] && { echo "== $name: skipped, no time left"; return; }
  timeout -k 10 "$((have < limit ? have : limit))" "$@" > "$out/$name.log" 2>&1
  echo "== $name: status $? after $((SECONDS - begun)) s"
  tail -n "${LINES_SHOWN:-25}" "$out/$name.log" | cut -c1-300
  (cd "$out" && tar czf .results.tgz --exclude='*.tgz' . && mv .results.tgz results.tgz)
}

nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw --format=csv 2>/dev/null
# Correctness: the check on the GPU, which also builds the TensorRT plans into the cache.
for model in starry-night-fast gallery starry-night; do
  step 60 "gate-$model" nst-export verify "$repository/$model/1"
done
step 90 tests python3 -m pytest -q -m gpu -p no:cacheprovider tests/core tests/export/test_gpu.py tests/server tests/trainer/test_optimize.py tests/trainer/test_lbfgs.py
# Speed
minutes=$(( (end - SECONDS) * 6 / 600 )); [ "$minutes" -gt 6 ] && minutes=6; [ "$minutes" -lt 1 ] && minutes=1
step $((minutes * 60 + 30)) bench nst-bench --minutes "$minutes" --device gpu -r "$repository" ${style:+--style "$style"} -o "$out/bench"
step 60 latency-starry-night nst-bench latency --device gpu --checkpoint models/starry-night.pth -r "$repository" -o "$out/latency-starry-night.json"
step 60 latency-gallery nst-bench latency --device gpu --checkpoint models/gallery.pth -r "$repository" -o "$out/latency-gallery.json"
for other in ${OTHERS:-}; do
  step 100 "serving-${other##*/}" nst-bench serving --device gpu -r "$other" -o "$out/serving-${other##*/}.json"
done
step 60 client-tests python3 -m pytest -q -m gpu -p no:cacheprovider tests/end_to_end tests/benchmarks
