#!/usr/bin/env bash
# Retrieval in six languages on storybook pages: sentencepiece against CLIP's BPE, nine seeds, and ensembles of three at a time.
#   runs/storybook.sh DATA [SEEDS [DICTIONARIES [SET ...]]]
# SEEDS: 0,1,2,3,4,5,6,7,8 unless given; every three that follow each other make an ensemble. Resumable.
# DICTIONARIES: a folder of FreeDict's dictd files (usr/share/dictd of the packages dict-freedict-eng-deu, -deu-eng and so on for
# fra, por, swh) and, for Chinese, of Unihan_Readings.txt: the training pages get glosses. SET: more overrides for every run.
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=$1 SEEDS=${2:-0,1,2,3,4,5,6,7,8} DICTIONARIES=${3:-}
PYTHON=${PYTHON:-python} VLP=${VLP:-vlp} OUT=runs/out/storybook
MORE=() PAGES="$DATA/storybook_pages" FIELD=texts
for ONE in "${@:4}"; do MORE+=(--set "$ONE"); done
if [ -n "$DICTIONARIES" ]; then
  OUT=runs/out/storybook_glossed PAGES=$OUT/pages FIELD=texts_glossed
  mkdir -p $OUT
  "$PYTHON" runs/unihan_words.py "$DICTIONARIES"/Unihan_Readings.txt* $OUT/zh.tsv
  WORDS=(--dictionary zh=$OUT/zh.tsv)
  for PAIR in de=deu fr=fra pt=por sw=swh; do
    WORDS+=(--dictionary "${PAIR%=*}=$DICTIONARIES/freedict-eng-${PAIR#*=}" --turned "${PAIR%=*}=$DICTIONARIES/freedict-${PAIR#*=}-eng")
  done
  "$VLP" data gloss "$DATA/storybook_pages/train-*.tar" --out $PAGES "${WORDS[@]}"
  MORE+=(--set "data.sources.0.urls=$PAGES/train-*.tar" --set "data.sources.0.captions={fields: [$FIELD], pick: random, count: 4}")
fi
[ -f $OUT/storybook.model ] || "$VLP" tokenizer train "$PAGES/train-*.tar" $OUT/storybook.model --fields $FIELD
SUITE() { echo "{suite: configs/eval/$1.yaml, every: 100%, overrides: {data: $DATA/storybook_pages}}"; }
"$PYTHON" runs/arms.py runs/storybook.yaml --out $OUT --data "$DATA" --seeds "$SEEDS" --parallel "${PARALLEL:-2}" \
  --set "evals=[$(SUITE storybook)]" ${MORE[@]+"${MORE[@]}"}
IFS=, read -ra EACH <<< "$SEEDS"
for ARM in sentencepiece bpe; do
  for ((I = 0; I + 2 < ${#EACH[@]}; I += 3)); do
    OF=$OUT/ensembles/$ARM-${EACH[I]}-${EACH[I+1]}-${EACH[I+2]}
    [ -d "$OF/model" ] ||
      "$VLP" ensemble "$OUT/$ARM-seed${EACH[I]}" "$OUT/$ARM-seed${EACH[I+1]}" "$OUT/$ARM-seed${EACH[I+2]}" --out "$OF/model"
    "$VLP" eval "$OF/model" configs/eval/storybook.yaml "data=$DATA/storybook_pages" --out "$OF"
  done
done
"$PYTHON" runs/storybook_table.py $OUT
