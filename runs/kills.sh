#!/usr/bin/env bash
# Training killed at random moments, also during a save, at W=1, 2 and 4 and at changing W, beside straight runs.
#   bash runs/kills.sh [KILLS] [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
KILLS=${1:-20} OUT=${2:-runs/out/kills} PYTHON=${PYTHON:-.venv/bin/python} FAILED=0
"$PYTHON" -m tests.faults.kills --world 1 2 4 --kills "$KILLS" --out "$OUT/same" || FAILED=1
"$PYTHON" -m tests.faults.kills --elastic --kills 9 --out "$OUT/elastic" || FAILED=1
"$PYTHON" -m tests.faults.dry --keys 1000000 --resumes 5 || FAILED=1
exit $FAILED
