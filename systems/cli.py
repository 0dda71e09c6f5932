"""The flags of run.py and which of them go together. It imports no torch: --help and a misspelt flag answer at once."""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import NoReturn

from systems import cli_eval
from utils.errors import UserError, suggestion

PORT = 8080  # of --view
CONFS = Path(__file__).parent.parent / "confs"  # wherever the program is called from

ABOUT = """Photographs of an object go in; a coloured mesh, a video and metrics on held-out views come out.

Start with: python run.py --photos DIR --train"""

EXAMPLES = f"""examples:
  python run.py --config confs/dtu.yaml --train dataset.root_dir=inputs/scan65 trainer.max_minutes=10
  python run.py --config confs/dtu.yaml --train --preset balanced dataset.root_dir=inputs/scan65
  python run.py --config confs/nero.yaml --train dataset.root_dir=inputs/scan65   shape, material, light, a relit turntable
  python run.py --train --resume outputs/NAME/TRIAL                 go on where a run stopped
  python run.py --test --resume outputs/NAME/TRIAL                  held-out metrics, pictures, video
  python run.py --mesh --resume outputs/NAME/TRIAL export.resolution=1024
  python run.py --photos DIR --train                                photographs alone: finds the cameras first
  python run.py --relight --resume outputs/NAME/TRIAL --hdr LIGHT.exr   a material under another light
  python run.py --view --resume outputs/NAME/TRIAL                  look at a run in the browser; with --train, while it trains
{cli_eval.EXAMPLES}

every option with its unit and meaning: confs/schema.py, confs/model.py, confs/material.py"""


class Parser(argparse.ArgumentParser):
    """Strict: no abbreviations; a misspelt flag is answered with the nearest one."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parser() -> Parser:
    shape = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="run.py", description=ABOUT, epilog=EXAMPLES, formatter_class=shape, allow_abbrev=False)
    p.add_argument("--config", metavar="YAML", help="what to build; by default NeuS, on the layout that dataset.root_dir turns out to have")
    p.add_argument("--train", action="store_true", help="train, then test and mesh unless trainer.finish=false")
    p.add_argument("--test", action="store_true", help="metrics on held-out views, pictures, video (with --resume)")
    p.add_argument("--no-video", action="store_true", help="no video after the test (with --train or --test)")
    p.add_argument("--mesh", action="store_true", help="extract the mesh (with --resume)")
    p.add_argument("--resume", metavar="CKPT", help="a checkpoint, or a run folder (its newest checkpoint)")
    presets = ["fast", "balanced", "best"]
    p.add_argument("--preset", choices=presets, help="about 3, 10, 60 minutes on two cores; 10, 20, 100 thousand steps on CUDA")
    p.add_argument(
        "--photos", metavar="DIR|VIDEO", help="photographs or a video without cameras: makes the scene dataset.root_dir, or inputs/<DIR>"
    )
    p.add_argument("--masks", metavar="DIR", help="masks of the photographs, white on the object (with --photos)")
    p.add_argument("--marker-size", metavar="METRES", help="side of the printed markers in the photographs: the mesh is written in metres")
    p.add_argument(
        "--scale-distance",
        metavar='"X,Y,Z X,Y,Z METRES"',
        help="two points of the mesh and their true distance: the mesh is written in metres",
    )
    p.add_argument("--auto-mask", action="store_true", help="make object masks for a scene that has none, into its folder masks/")
    p.add_argument("--region", metavar="X0,Y0,X1,Y1@IMAGE", help="the object: a box on one photograph, in its pixels (with --train)")
    p.add_argument("--mask-model", metavar="FILE.onnx", help="a segmentation network that helps --auto-mask: U2-Net, IS-Net, RMBG, ...")
    p.add_argument("--mask-norm", choices=["imagenet", "unit"], help="colours that --mask-model takes: ImageNet's (default), or 0 to 1")
    p.add_argument("--relight", action="store_true", help="pictures of a recovered material under another light (with --resume)")
    p.add_argument(
        "--hdr",
        metavar="FILE",
        help="light map, .hdr or .exr, equirectangular (with --relight); by default the recovered light and another",
    )
    p.add_argument("--blender", metavar="PATH", help="Blender, or a Python that has bpy (with --relight); without one we render ourselves")
    p.add_argument("--poses", metavar="JSON", help="cameras to render from, as transforms.json (with --relight); by default an orbit")
    p.add_argument("--view", action="store_true", help="a page for the browser, on this machine alone (with --train, or with --resume)")
    p.add_argument("--view-port", metavar="N", type=int, help="port of the page, the next free one where it is taken; default 8080")
    cli_eval.add_flags(p)
    p.add_argument("overrides", nargs="*", metavar="key=value", help="options of confs/schema.py, for example trainer.max_steps=1000")
    return p


def parse(words: list[str]) -> argparse.Namespace:
    """Parse strictly. Raises UserError with a suggestion for a misspelt flag and for flags that do not go together."""
    p = parser()
    flags = [flag for action in p._actions for flag in action.option_strings]
    for word in words:
        flag = word.split("=")[0]
        if flag.startswith("-") and flag not in flags and " " not in flag:  # "-1,0,0 1,0,0 0.3" is the value of a flag
            raise UserError(f"unknown flag '{flag}'{suggestion(flag, flags)} (see --help)")
    args = p.parse_intermixed_args(words)
    jobs = [
        name for name in ("train", "test", "mesh", "relight", "eval", "eval_table", "photos", "auto_mask", "view") if getattr(args, name)
    ]
    alone = next((name for name in ("eval", "eval_table", "relight") if name in jobs), None)
    if alone and len(jobs) > 1:
        raise UserError(
            f"--{alone} does not go with --{next(n for n in jobs if n != alone)}; run them one after the other".replace("_", "-")
        )
    cli_eval.check(args)
    owners = {"masks": "photos", "hdr": "relight", "blender": "relight", "poses": "relight", "mask_model": "auto_mask"}
    for flag, owner in owners.items():
        if getattr(args, flag) and owner not in jobs:
            raise UserError(f"--{flag} goes with --{owner}".replace("_", "-"))
    if args.mask_norm and not args.mask_model:
        raise UserError("--mask-norm goes with --mask-model")
    vain = next((flag for flag in ("config", "preset") if getattr(args, flag)), None)
    if alone and vain:
        raise UserError(f"--{vain} has no effect on --{alone}".replace("_", "-"))
    for flag in ("marker_size", "scale_distance"):
        if getattr(args, flag) and (alone or not (args.train or args.mesh)):
            raise UserError(f"--{flag.replace('_', '-')} goes with --train or --mesh")
    if args.no_video and not (args.train or args.test):
        raise UserError("--no-video goes with --train or --test")
    if args.region is not None:
        if not args.train or args.resume:
            raise UserError("--region goes with --train, at the start of a run")
        args.overrides = [*args.overrides, f"dataset.region={json.dumps(args.region, ensure_ascii=False)}"]
    check_view(args)
    if args.preset and not args.train:
        raise UserError("--preset goes with --train")
    if args.eval or args.eval_table:
        return args
    if args.relight and not args.resume:
        raise UserError("--relight needs --resume with the checkpoint of a material")
    if not jobs:
        raise UserError("nothing to do: give --train, --test, --mesh, --relight, --photos, --view, --eval or --eval-table (see --help)")
    if args.photos and not args.config:
        args.config = str(CONFS / "neus-colmap.yaml")
    if not (args.train or args.test or args.mesh or args.view):
        return args
    if not (args.config or args.resume or any(word.startswith("dataset.root_dir=") for word in args.overrides)):
        raise UserError("which scene? give dataset.root_dir=FOLDER, --config confs/dtu.yaml (see confs/), or --resume with a checkpoint")
    if not args.train and not args.resume:
        raise UserError("--test and --mesh need --resume with a checkpoint or run folder")
    return args


def check_view(args: argparse.Namespace) -> None:
    """The flags of `--view`. Raises UserError, also where viser is not installed: before anything is computed."""
    if args.view_port is not None and not args.view:
        raise UserError("--view-port goes with --view")
    if not args.view:
        return
    if not args.train and (args.test or args.mesh or args.photos or args.auto_mask or not args.resume):
        raise UserError("--view goes with --train, or alone with --resume and the checkpoint or run folder to look at")
    if args.view_port is not None and not 1 <= args.view_port <= 65535:
        raise UserError(f"--view-port must lie in 1..65535, got {args.view_port}")
    args.view_port = args.view_port or PORT
    if importlib.util.find_spec("viser") is None:
        raise UserError("--view needs viser, which is not installed: pip install viser==1.1.1, or go on without --view")
