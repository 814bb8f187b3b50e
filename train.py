"""Train a dual encoder: `python train.py CONFIG.yaml [key=value ...]`; the same as `vlp train`.

On several processes: `torchrun --nproc-per-node 2 train.py CONFIG.yaml`. Started again, a run goes on where it was.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve the loader; read when torch is imported

from vlp.cli import run_train

if __name__ == "__main__":
    run_train()
