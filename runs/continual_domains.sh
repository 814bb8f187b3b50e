#!/usr/bin/env bash
# Four domains of real pictures in sequence: fine-tuning, replay, joint training and CTP, one thread an arm. Resumable.
#   bash runs/continual_domains.sh FOLDER [key=value ...]
# FOLDER holds emoji_styles, grocery_store, openstax_figures, storybook_pages.
#   ARMS="finetune ctp" bash runs/continual_domains.sh FOLDER run.seed=1 name=domains-seed1
set -euo pipefail
cd "$(dirname "$0")/.."
VLP=${VLP:-.venv/bin/vlp} PYTHON=${PYTHON:-.venv/bin/python}
DATA=${1:?"say where the data sets lie: bash runs/continual_domains.sh FOLDER"}
shift
export OMP_NUM_THREADS=1
LISTS=runs/out/continual/lists
mkdir -p "$LISTS"
for SPLIT in train test; do
  [ -s "$LISTS/photo-$SPLIT.txt" ] ||
    "$PYTHON" runs/keep_by_field.py "$DATA/openstax_figures/$SPLIT-*.tar" kind photo "$LISTS/photo-$SPLIT.txt"
done
"$PYTHON" - "$DATA/grocery_store/classes.json" >"$LISTS/groceries.txt" <<'PY'
import json, sys
print(*(entry["name"] for entry in json.load(open(sys.argv[1], encoding="utf-8"))), sep="\n")
PY
for ARM in ${ARMS:-finetune replay joint ctp}; do
  "$VLP" continual runs/continual_domains.yaml --arm "$ARM" data="$DATA" "$@"
done
