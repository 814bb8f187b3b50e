"""`open_clip_train.main` on shards; runs in the environment of open_clip_train.txt.

    python train_theirs.py SETTINGS.json

Settings are those of train.py. Prints, as JSON, seconds and loss of every step, from its own log.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import open_clip
from open_clip_train.main import main

LINE = re.compile(r"Batch \(t\): [\d.]+, ([\d.e+]+)/s.* Loss: ([\d.]+)")


def arguments(settings: dict[str, Any]) -> list[str]:
    """The words of its command line."""
    return [
        *("--model", settings["arch"], "--precision", "fp32", "--dataset-type", "webdataset"),
        *("--train-data", "::".join(settings["shards"])),
        *("--train-num-samples", str(settings["batch"] * settings["steps"])),
        *("--batch-size", str(settings["batch"]), "--workers", str(settings["workers"]), "--epochs", "1"),
        *("--lr", str(settings["lr"]), "--warmup", str(settings["warmup"]), "--wd", "0.2", "--grad-clip-norm", "1.0"),
        *("--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-6", "--seed", "0"),
        *("--logs", settings["folder"], "--name", "theirs", "--log-every-n-steps", "1"),
    ]


if __name__ == "__main__":
    settings = json.loads(Path(sys.argv[1]).read_text())
    shutil.rmtree(Path(settings["folder"]) / "theirs", ignore_errors=True)
    open_clip.add_model_config(Path(settings["config"]))
    main(arguments(settings))
    found = LINE.findall((Path(settings["folder"]) / "theirs" / "out.log").read_text())
    assert len(found) == settings["steps"], found
    seconds = [settings["batch"] / float(pace) for pace, _ in found]
    print(json.dumps({"seconds": seconds, "losses": [float(loss) for _, loss in found]}))
