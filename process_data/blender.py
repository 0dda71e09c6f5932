"""NeRF-synthetic: transforms_{train,val,test}.json rendered by Blender; the alpha channel of the images is the mask.

Each file has the format of `transforms.json` (process_data/transforms.py); image names usually have no suffix. The test split is held
out, or the val split when there is no test split; otherwise the val split is not used.
"""

import logging
from dataclasses import replace
from pathlib import Path

from confs.schema import DatasetConfig
from process_data.capture import Capture, assemble
from process_data.transforms import read_frames
from utils.errors import UserError
from utils.rays import Scene

LOG = logging.getLogger("neus")


def read_blender(cfg: DatasetConfig, log: logging.Logger = LOG) -> Scene:
    """Read the folder `cfg.root_dir`. Raises UserError that lists all problems."""
    root = Path(cfg.root_dir)
    path = root / "transforms_train.json"
    if not path.is_file():
        raise UserError(f"{root}: no transforms_train.json; set dataset.root_dir to a folder with the NeRF-synthetic layout")
    train = read_frames(path, cfg, log)
    held = next((root / f"transforms_{split}.json" for split in ("test", "val") if (root / f"transforms_{split}.json").is_file()), None)
    if held is None:
        log.warning("%s: no transforms_test.json: every %d-th training view is held out", root, cfg.hold_every)
        return assemble(Capture(root, train), cfg, log)
    test = read_frames(held, cfg, log)
    both = [replace(view, mask=None) for view in (*train, *test)]
    log.info("%s: %d views to train on, %d of %s held out", root, len(train), len(test), held.name)
    return assemble(Capture(root, both, test=tuple(range(len(train), len(both)))), cfg, log)
