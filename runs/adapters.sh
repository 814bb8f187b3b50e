#!/usr/bin/env bash
# Adapters on the targets of the backbone, methods x shots x draws, and one table of all.  Resumable: what is there is not fitted again.
#   bash runs/adapters.sh DATA [MODEL] [features]
# MODEL: default runs/out/backbone, trained first if it is not there (half an hour).  features: only what needs no image tower
# once the pictures are encoded, under an hour on two cores; the rest takes some hours.
set -euo pipefail
cd "$(dirname "$0")/.."
VLP=${VLP:-.venv/bin/vlp} OUT=runs/out/adapters
DATA=${1:?say where the data sets lie: bash runs/adapters.sh DATA}
MODEL=${2:-runs/out/backbone}
GRIDS="adapters adapters_unlabelled adapters_text_prompts adapters_trees adapters_concept adapters_imbalanced adapters_open_set adapters_transductive"
case ${3:-all} in
  all) GRIDS="$GRIDS adapters_pseudolabels adapters_base_to_new adapters_prompts adapters_more adapters_shift adapters_words adapters_cross adapters_semi" ;;
  features) ;;
  *) echo "runs/adapters.sh: \"$3\" is neither \"features\" nor left out" >&2; exit 2 ;;
esac
if [ "$MODEL" = runs/out/backbone ]; then
  bash runs/backbone.sh "$DATA"
elif [ ! -f runs/out/backbone/lists/names_tree.json ]; then
  echo "runs/adapters.sh: the sets are not in runs/out/backbone; \`bash runs/backbone.sh $DATA\` makes them, and the model" >&2; exit 2
fi
FAILED=0
for GRID in $GRIDS; do
  echo "$GRID" >&2
  "$VLP" tune grid "configs/tune/$GRID.yaml" "$MODEL" --out "$OUT/$GRID" >&2 || FAILED=1
done
"$VLP" tune table "$OUT" | tee "$OUT/table.md"
exit $FAILED
