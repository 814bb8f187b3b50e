#!/usr/bin/env bash
# The model that the adapters start from, trained on everything at hand but their held-out parts.  Resumable.
#   bash runs/backbone.sh DATA [key=value ...]      DATA: the folder of the sets below; afterwards `vlp eval runs/out/backbone configs/eval/given.yaml`
set -euo pipefail
cd "$(dirname "$0")/.."
VLP=${VLP:-.venv/bin/vlp} PYTHON=${PYTHON:-.venv/bin/python} OUT=runs/out/backbone
DATA=$(realpath "${1:?say where the data sets lie: bash runs/backbone.sh DATA}")
shift
mkdir -p $OUT/data
for SET in openstax_figures storybook_pages emoji_styles grocery_store nlvr_scenes nuclei_seg tiny_coco_cc; do ln -sfn "$DATA/$SET" "$OUT/data/$SET"; done
"$PYTHON" runs/backbone_lists.py "$DATA" $OUT/lists
SCENES() { [ -f "$OUT/data/scenes/$1/dataset.json" ] || "$VLP" data scenes $OUT/data/scenes --split "$@"; }
SCENES train --styles flat,outline,crayon,pixel,pastel --count 12000 --seed 30
SCENES labelled_train --variant labelled --styles flat,outline,crayon,pixel,pastel --count 2000 --seed 31
SCENES labelled_validation --variant labelled --styles photo,night --count 1000 --seed 32
SCENES labelled_test --variant labelled --styles photo,night --count 1000 --seed 33
SCENES labelled_support --variant labelled --styles photo,night --count 2000 --seed 34
"$VLP" train configs/train/backbone.yaml "$@"
