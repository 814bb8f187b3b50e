#!/usr/bin/env bash
# Nuclei by zero-shot masks, linear layers and DenseCLIP; planted defects by AdaptCLIP; boxes by DetPro; sheets of pictures.
#   runs/dense_adapters.sh DATA [MODEL]   DATA holds nuclei_seg; MODEL: any model of 64 pixels, default one trained on scenes
#   here. Resumable: start it again.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=$1 OUT=runs/out/dense
VLP=${VLP:-vlp} PYTHON=${PYTHON:-python}
scenes() { "$VLP" data scenes $OUT/data --shard-size 500 "$@"; }  # what is there stays
scenes --split auxiliary --variant labelled --defects 0.5 --count 800 --seed 11 --styles flat,outline,crayon,pixel
scenes --split flawed --variant labelled --defects 0.5 --count 600 --seed 12 --styles photo,pastel,night
scenes --split normal --variant labelled --count 250 --seed 13 --styles photo,pastel,night
scenes --split boxes_train --count 500 --seed 14
scenes --split boxes --count 400 --seed 15 --exclude $OUT/data/boxes_train
MODEL=${2:-$OUT/backbone}
if [ "$MODEL" = $OUT/backbone ]; then
  scenes --split train --count 16000 --seed 1 --workers 2
  "$VLP" train configs/train/scenes.yaml out=$OUT name=backbone model.arch=vlp-vit-64 \
    "data.sources.0.urls=$OUT/data/train/*.tar" "evals=[]"
fi
"$VLP" eval "$MODEL" configs/eval/nuclei_dense.yaml "data=$DATA/nuclei_seg" --out $OUT/nuclei
"$VLP" eval "$MODEL" configs/eval/scenes_defects.yaml --out $OUT/defects
"$VLP" eval "$MODEL" configs/eval/scenes_regions.yaml --out $OUT/regions
"$PYTHON" runs/dense_pictures.py $OUT/nuclei $OUT/defects --out $OUT/pictures
echo "look at $OUT/pictures"
