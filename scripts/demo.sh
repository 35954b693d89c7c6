#!/usr/bin/env bash
# Installs the project into .venv, then converts the sample network into runs/demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup ""
mkdir -p runs
exec .venv/bin/flatconv convert sample_models.paper_cifar10:build \
    --checkpoint sample_models/paper_cifar10.safetensors \
    --calib sample_models/cifar10_calib.npz \
    --eval sample_models/cifar10_eval.npz \
    --max-drop 0.01 \
    --output runs/demo --verbose "$@"
