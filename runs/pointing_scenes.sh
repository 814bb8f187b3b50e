#!/usr/bin/env bash
# The pointing game and compositional negatives on rendered scenes: CLIP, FILIP, CLIP+FILIP, DreamLIP, three seeds.
#   runs/pointing_scenes.sh [NLVR_FOLDER]   (resumable; the scenes are those of `make demo`, rendered if absent)
set -euo pipefail
cd "$(dirname "$0")/.."
NLVR=${1:-}
PYTHON=${PYTHON:-python} VLP=${VLP:-vlp} OUT=runs/out/pointing SCENES=runs/out/demo/data
"$VLP" data scenes $SCENES --split train --count 16000 --seed 1 --workers 2  # as `make demo`; what is there stays
"$VLP" data scenes $SCENES --split fine_test --count 1000 --seed 7 --exclude $SCENES/train  # nothing was chosen on these
EVALS="{suite: configs/eval/scenes_fine.yaml, every: 100%}"
[ -z "$NLVR" ] || EVALS="$EVALS, {suite: configs/eval/nlvr.yaml, every: 100%, overrides: {data: $NLVR}}"
"$PYTHON" runs/arms.py runs/pointing_scenes.yaml --out $OUT --data $SCENES --seeds "${SEEDS:-1,2,3}" \
  --parallel "${PARALLEL:-2}" --set "evals=[$EVALS]"
