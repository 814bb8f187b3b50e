#!/usr/bin/env bash
# Four styles of rendered scenes in sequence: fine-tuning, replay, joint training and CTP. Resumable.
#   bash runs/continual_scenes.sh [key=value ...]        ARMS="finetune ctp" bash runs/continual_scenes.sh
set -euo pipefail
cd "$(dirname "$0")/.."
VLP=${VLP:-.venv/bin/vlp}
DATA=runs/out/continual/data
SEED=10
for STYLE in flat crayon night photo; do
  "$VLP" data scenes "$DATA" --split "${STYLE}_train" --styles "$STYLE" --count 4000 --seed "$((SEED++))" --size 64
  "$VLP" data scenes "$DATA" --split "${STYLE}_test" --styles "$STYLE" --count 500 --seed "$((SEED++))" --size 64 \
    --exclude "$DATA/${STYLE}_train"
done
for ARM in ${ARMS:-finetune replay joint ctp}; do
  "$VLP" continual configs/continual/scenes.yaml --arm "$ARM" data="$DATA" "$@"
done
