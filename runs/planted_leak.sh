#!/usr/bin/env bash
# Planted leaks in openstax_figures: 200 test pictures coded again and cropped, found or not; false alarms of the rest.
#   runs/planted_leak.sh DATA      (the folder that holds openstax_figures and the other sets; half a minute)
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${1:?folder that holds openstax_figures}
PYTHON=${PYTHON:-python} OUT=runs/out/planted
FIGURES=$DATA/openstax_figures
"$PYTHON" runs/planted_leak.py "$FIGURES/train-*.tar" "$FIGURES/test-*.tar" $OUT --areas 0.9,0.8,0.7 --unrelated \
  "grocery=$DATA/grocery_store/test-*.tar" "storybook=$DATA/storybook_pages/test-*.tar" \
  "emoji=$DATA/emoji_styles/{noto,lineart}-*.tar" "nlvr=$DATA/nlvr_scenes/test-*.tar" \
  "nuclei=$DATA/nuclei_seg/test-*.tar"
echo "look at $OUT/leaks/contamination.html: what is reported of clean pictures may be a real copy"
