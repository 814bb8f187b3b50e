#!/usr/bin/env bash
# Naive mixture against prefixes, CLIP against UniCL: openstax captions with emoji and grocery labels in one run, measured
# with both prefixes.  runs/prefix_mixture.sh DATA [SEEDS]   (resumable)
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=$1 SEEDS=${2:-0}
PYTHON=${PYTHON:-python} OUT=runs/out/prefix
"$PYTHON" runs/label_lists.py "$DATA" $OUT/lists
SUITE() { echo "{suite: configs/eval/mixture_$1.yaml, every: 100%, overrides: {data: $DATA}}"; }
PLAIN="evals=[$(SUITE validation), $(SUITE test)]"
BOTH="evals=[$(SUITE validation), $(SUITE test), $(SUITE validation_label_prefix), $(SUITE test_label_prefix)]"
ARMS() { "$PYTHON" runs/arms.py runs/prefix_mixture.yaml --out $OUT --data "$DATA" --seeds "$SEEDS" --parallel "${PARALLEL:-2}" "$@"; }
ARMS --only captions_only,clip_naive,clip_single,unicl_naive,unicl_single --set "$PLAIN"
ARMS --only clip_prefix,unicl_prefix --set "$BOTH"
