"""Print the paths of a finished run's mesh and video and its metrics: `python -m utils.summary outputs/NAME/TRIAL`."""

import json
import sys
from pathlib import Path

from utils.errors import UserError
from utils.log import log, setup_logging


def summary(run: Path) -> str:
    """Lines on the results in a run folder. Raises UserError when the folder does not exist."""
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder; give outputs/NAME/TRIAL")
    lines = [
        f"{label:8s} {run / name}"
        for label, name in (("report", "report.html"), ("mesh", "mesh/mesh.ply"), ("video", "video.mp4"), ("pictures", "test"))
        if (run / name).exists()
    ]
    test, mesh = run / "test/metrics.json", run / "mesh/metrics.json"
    if test.is_file():
        m = json.loads(test.read_text())
        values = [f"{k} {m[k]:.3f}" for k in ("psnr", "psnr_masked", "ssim", "lpips") if m.get(k) is not None]
        lines.append(f"{'held out' if m['held_out'] else 'training views'}: {', '.join(values)}")
    if mesh.is_file():
        m = json.loads(mesh.read_text())
        if m.get("protocol") == "dtu":
            lines.append(f"DTU      overall {m['overall']:.3f} mm (d2s {m['d2s']:.3f}, s2d {m['s2d']:.3f})")
        elif m.get("protocol") == "tnt":
            lines.append(f"F-score  {m['fscore_tau']:.4f} at {m['tau']:g}")
        else:
            unit = "of the unit sphere's radius" if m["unit"] != 1 else "world units"
            normal = "" if m["normal_consistency"] is None else f", normal consistency {m['normal_consistency']:.4f}"
            lines.append(f"Chamfer  {m['chamfer']:.5f} {unit}{normal}")
    return "\n".join(lines)


if __name__ == "__main__":
    setup_logging()
    try:
        log.info(summary(Path(sys.argv[1])))
    except (UserError, IndexError) as error:
        log.error("error: %s", error if str(error) else "give a run folder")
        sys.exit(2)
