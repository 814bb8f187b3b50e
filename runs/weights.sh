#!/usr/bin/env bash
# Soups of four fine-tuned models, and task vectors of four targets for a fifth, after runs/backbone.sh.  Resumable.
#   bash runs/weights.sh [MODEL]
set -euo pipefail
cd "$(dirname "$0")/.."
VLP=${VLP:-.venv/bin/vlp} OUT=runs/out/weights MODEL=${1:-runs/out/backbone}
mkdir -p $OUT/one
for PLACE in 0 1 2 3; do  # the first four sets of adapters.yaml, one file each
  SET=$(${PYTHON:-.venv/bin/python} runs/one_set.py configs/tune/adapters.yaml $PLACE $OUT/one)
  [ -f "$OUT/$SET/adapter.json" ] ||
    "$VLP" tune finetune "$MODEL" "$OUT/one/$SET.yaml" --shots 8 --out "$OUT/$SET" lr=1e-3 epochs=15 batch_size=64 warmup=10
done
for GRID in adapters_soup adapters_vectors; do
  "$VLP" tune grid configs/tune/$GRID.yaml "$MODEL" --out $OUT/$GRID
  "$VLP" tune table $OUT/$GRID
done
