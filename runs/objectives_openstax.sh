#!/usr/bin/env bash
# All objectives on the textbook figures, same model and image passes; choices on validation pairs, then three fresh seeds on
# the test pairs.  runs/objectives_openstax.sh DATA [validation | test ARM,ARM,...]   (resumable: start it again)
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=$1 STAGE=${2:-validation}
PYTHON=${PYTHON:-python}
OUT=runs/out/objectives
SUITE() { echo "evals=[{suite: configs/eval/$1.yaml, every: 100%, overrides: {data: $DATA/openstax_figures}}]"; }
if [ "$STAGE" = validation ]; then
  "$PYTHON" runs/arms.py runs/objectives_openstax.yaml --out $OUT/validation --data "$DATA" --seeds 0 --parallel "${PARALLEL:-1}" --threads "${THREADS:-2}" \
    --set "$(SUITE openstax_heads_validation)"
else
  "$PYTHON" runs/arms.py runs/objectives_openstax.yaml --out $OUT/test --data "$DATA" --seeds 1,2,3 --only "$3" \
    --parallel "${PARALLEL:-1}" --threads "${THREADS:-2}" --set "$(SUITE openstax_heads)"
fi
