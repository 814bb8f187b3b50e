#!/usr/bin/env bash
# Retrieval in six languages on storybook pages: sentencepiece against CLIP's BPE, three seeds, after runs/backbone.sh DATA.
#   runs/storybook.sh DATA [SEEDS]
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=$1 SEEDS=${2:-0,1,2}
PYTHON=${PYTHON:-python} VLP=${VLP:-vlp} OUT=runs/out/storybook
[ -f $OUT/storybook.model ] || "$VLP" tokenizer train "$DATA/storybook_pages/train-*.tar" $OUT/storybook.model --fields texts
SUITE() { echo "{suite: configs/eval/$1.yaml, every: 100%, overrides: {data: $DATA/storybook_pages}}"; }
"$PYTHON" runs/arms.py runs/storybook.yaml --out $OUT --data "$DATA" --seeds "$SEEDS" --parallel "${PARALLEL:-2}" \
  --set "evals=[$(SUITE storybook)]"
