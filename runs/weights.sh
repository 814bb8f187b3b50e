#!/usr/bin/env bash
# Soups of four fine-tuned models, and task vectors of four targets for a fifth, after runs/backbone.sh.  Resumable.
#   bash runs/weights.sh [MODEL]
set -euo pipefail
cd "$(dirname "$0")/.."
VLP=${VLP:-.venv/bin/vlp} OUT=runs/out/weights MODEL=${1:-runs/out/backbone}
mkdir -p $OUT
for SET in grocery-81 grocery-43 emoji-groups-style emoji-subgroups-style; do  # the first four of adapters.yaml
  [ -f "$OUT/$SET/adapter.json" ] ||
    "$VLP" tune finetune "$MODEL" configs/tune/adapters.yaml "only=[$SET]" --shots 8 --out "$OUT/$SET" lr=1e-3 epochs=15 batch_size=64 warmup=10
done
for GRID in adapters_soup adapters_vectors; do
  "$VLP" tune grid configs/tune/$GRID.yaml "$MODEL" --out $OUT/$GRID
  "$VLP" tune table $OUT/$GRID
done
