"""The flags of evaluation, and which of them go together. It imports no torch."""

import argparse

from utils.errors import UserError

EXAMPLES = """  python run.py --eval --resume outputs/NAME/TRIAL                  PSNR, SSIM, LPIPS of the held-out views at full size
  python run.py --eval mesh.ply --gt truth.ply --eval-out DIR       Chamfer, F-score, normals; surfaces coloured by their error
  python run.py --eval mesh.ply --gt truth.ply --scene inputs/NAME  the same, culled by the masks, only what two views see
  python run.py --eval mesh.ply --protocol dtu --dtu-data DIR --scan 24
  python run.py --eval mesh.ply --protocol tnt --gt Barn.ply --tnt-crop Barn.json --tnt-tau 0.01
  python run.py --eval-table outputs/*/*                            runs side by side, means over seeds"""
DTU, TNT = ("dtu_data", "scan"), ("tnt_crop", "tnt_tau", "tnt_align")
FILES = ("gt", "scene", "mask_dilation", "eval_out", "protocol", *DTU, *TNT)  # flags of --eval MESH


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--eval", nargs="?", const=True, metavar="MESH", help="compare a mesh with --gt; without MESH: the views of --resume")
    p.add_argument("--gt", metavar="MESH", help="the true mesh or point cloud for --eval MESH")
    p.add_argument(
        "--scene", metavar="DIR", help="for --eval MESH: cull it by the masks of a scene and judge only what two training views see"
    )
    p.add_argument("--mask-dilation", type=int, metavar="PIXELS", help="how far the masks of --scene grow; by default 2 %% of the width")
    p.add_argument("--eval-out", metavar="DIR", help="where --eval MESH writes metrics and coloured surfaces, --eval-table its table")
    p.add_argument("--protocol", choices=["dtu", "tnt"], help="of --eval MESH: the DTU data set's, or Tanks and Temples'")
    p.add_argument("--dtu-data", metavar="DIR", help="ObsMask/ and Points/stl/ of the DTU data set (with --protocol dtu)")
    p.add_argument("--scan", type=int, metavar="N", help="number of the scan (with --protocol dtu)")
    p.add_argument("--tnt-crop", metavar="JSON", help="crop volume of the scene (with --protocol tnt)")
    p.add_argument("--tnt-tau", type=float, metavar="X", help="distance of the F-score, in the truth's unit (with --protocol tnt)")
    p.add_argument("--tnt-align", metavar="FILE", help="4 x 4 matrix from the prediction to the truth (with --protocol tnt)")
    p.add_argument("--eval-table", nargs="+", metavar="RUN", help="one table of several run folders")


def check(args: argparse.Namespace) -> None:
    """Raises UserError for flags of evaluation that do not go together."""
    given = [name for name in FILES if getattr(args, name) is not None]
    if args.resume and isinstance(args.eval, str) and "=" in args.eval:  # --eval key=value: an option, not a mesh
        args.eval, args.overrides = True, [args.eval, *args.overrides]
    if not args.eval:
        wrong = next((name for name in given if not (name == "eval_out" and args.eval_table)), None)
        if wrong:
            raise UserError(f"{_flag(wrong)} goes with --eval" + (" MESH or --eval-table" if wrong == "eval_out" else ""))
        if args.eval_table and (args.resume or args.overrides):
            raise UserError(f"{'--resume' if args.resume else args.overrides[0]} has no effect on --eval-table")
    elif args.eval is True:
        if not args.resume:
            raise UserError("--eval needs a mesh (--eval MESH --gt GT), or --resume with a checkpoint whose views are judged")
        if given:
            raise UserError(f"{_flag(given[0])} has no effect on --eval --resume; to compare a mesh give --eval MESH")
    else:
        _check_mesh(args, given)


def _check_mesh(args: argparse.Namespace, given: list[str]) -> None:
    if args.resume:
        raise UserError("--resume has no effect on --eval MESH; give the mesh, or --resume alone with --eval")
    for name in given:
        owner = "dtu" if name in DTU else "tnt" if name in TNT else args.protocol
        if owner != args.protocol:
            raise UserError(f"{_flag(name)} goes with --protocol {owner}")
    if args.mask_dilation is not None and (not args.scene or args.mask_dilation < 0):
        raise UserError("--mask-dilation goes with --scene, and is 0 pixels or more")
    if args.overrides and not args.scene:
        raise UserError(f"{args.overrides[0]} has no effect on --eval MESH without --scene")
    needed = {"dtu": ("dtu_data", "scan"), "tnt": ("gt", "tnt_crop", "tnt_tau"), None: ("gt",)}[args.protocol]
    missing = [_flag(name) for name in needed if name not in given]
    if missing:
        what = f"--protocol {args.protocol}" if args.protocol else "--eval MESH"
        more = ", the true mesh or point cloud" if missing == ["--gt"] else ""
        raise UserError(f"{what} needs {' and '.join(missing)}{more} (see --help)")
    vain = {"dtu": "gt", "tnt": "scene"}.get(args.protocol or "")
    if vain in given:
        raise UserError(f"--{vain} has no effect on --protocol {args.protocol}")
    if args.tnt_tau is not None and not 0 < args.tnt_tau < float("inf"):
        raise UserError(f"--tnt-tau: must be a positive distance, got {args.tnt_tau}")
    if args.scan is not None and args.scan < 1:
        raise UserError(f"--scan: must be the number of a DTU scan, got {args.scan}")
