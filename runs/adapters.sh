#!/usr/bin/env bash
# Adapters on the targets of the backbone: few-shot, without labels, transductive, and learned prompts.  Resumable.
#   bash runs/adapters.sh DATA [MODEL]      MODEL: default runs/out/backbone, trained first if it is not there (half an hour)
set -euo pipefail
cd "$(dirname "$0")/.."
VLP=${VLP:-.venv/bin/vlp} OUT=runs/out/adapters
DATA=${1:?say where the data sets lie: bash runs/adapters.sh DATA}
MODEL=${2:-runs/out/backbone}
[ "$MODEL" != runs/out/backbone ] || bash runs/backbone.sh "$DATA"
FAILED=0
GRID() { "$VLP" tune grid "configs/tune/$1.yaml" "$MODEL" --out "$OUT/$1" || FAILED=1; "$VLP" tune table "$OUT/$1"; }
GRID adapters
GRID adapters_unlabelled
GRID adapters_pseudolabels
GRID adapters_prompts
GRID adapters_base_to_new
exit $FAILED
