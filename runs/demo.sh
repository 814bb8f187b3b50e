#!/usr/bin/env bash
# `make demo`: rendered scenes end to end. `make demo DATA=folder`: the folder's train-*.tar, measured on its test-*.tar.
set -euo pipefail
cd "$(dirname "$0")/.."
VLP=${VLP:-vlp}
DATA=${1:-scenes}

if [ "$DATA" = scenes ]; then
  OUT=runs/out/demo
  "$VLP" data scenes "$OUT/data" --split train --count 16000 --seed 1 --workers 2
  "$VLP" data scenes "$OUT/data" --split validation --count 500 --seed 4 --exclude "$OUT/data/train"
  "$VLP" data scenes "$OUT/data" --split test --count 1000 --seed 2 --exclude "$OUT/data/train"
  "$VLP" data scenes "$OUT/data" --split labelled --variant labelled --count 1000 --seed 3
  "$VLP" data verify "$OUT/data/test" --unique-captions --disjoint "$OUT/data/train"
  for SPLIT in train validation labelled; do "$VLP" data verify "$OUT/data/$SPLIT"; done
  "$VLP" doctor configs/train/scenes.yaml
  "$VLP" train configs/train/scenes.yaml
  TEST="$OUT/data/test/*.tar" QUERY="a large red star left of a blue circle" MORE="on a night sky" SHOWN=scenes-test
else
  SET=$(basename "$DATA")
  OUT=runs/out/$SET
  CONFIG=configs/train/$SET.yaml
  [ -f "$CONFIG" ] || { echo "no $CONFIG: write one (CONTRIBUTING.md) or choose one of configs/train/"; exit 1; }
  WHERE=("data.sources.0.urls=$DATA/train-*.tar")
  for ((I = 0; I < $(grep -c '^  - suite:' "$CONFIG"); I++)); do WHERE+=("evals.$I.overrides.data=$DATA"); done
  "$VLP" doctor "$CONFIG" "${WHERE[@]}"
  "$VLP" train "$CONFIG" "${WHERE[@]}"
  TEST="$DATA/test-*.tar" QUERY="a diagram of a cell with labels" MORE="a photograph" SHOWN=$SET-test
fi

"$VLP" embed "$OUT" "$TEST" --out "$OUT/index"
PICTURE=$(find "$OUT/eval/$SHOWN/thumbnails" -name '*.jpg' | sort | sed -n 1p)  # one of the test pictures: its own first hit
"$VLP" search "$OUT/index" "$QUERY" --out "$OUT/search-words.html"
"$VLP" search "$OUT/index" --image "$PICTURE" --out "$OUT/search-picture.html"
"$VLP" search "$OUT/index" "$MORE" --image "$PICTURE" --out "$OUT/search-both.html"
echo "look at $OUT/report.html and $OUT/search-*.html"
