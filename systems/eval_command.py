"""The commands that compare files: `--eval MESH`, its protocols, and `--eval-table`."""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
import trimesh

from systems import eval_scene, protocol_dtu, protocol_tnt
from systems.error_cloud import Compared, vertex_errors, write_comparison
from systems.mesh_eval import THRESHOLDS, evaluate_mesh, report
from utils.errors import UserError
from utils.files import checksum
from utils.mesh import in_world, load_mesh

log = logging.getLogger("neus")
SAMPLES = 200_000  # of each surface, without a protocol


def evaluate_files(args: argparse.Namespace) -> int:
    """`--eval MESH`: print the figures of its protocol, and write them and coloured surfaces where --eval-out is given."""
    torch.manual_seed(0)
    if args.eval_out and Path(args.eval_out).is_file():
        raise UserError(f"--eval-out {args.eval_out}: is a file; give a folder")
    mesh = in_world(load_mesh(args.eval, points=bool(args.protocol)))
    found, text, words = {None: _plain, "dtu": _dtu, "tnt": _tnt}[args.protocol](mesh, args)
    log.info(text)
    if args.eval_out:
        found.result["mesh_sha256"] = checksum(args.eval)
        paths = write_comparison(args.eval_out, found, *words)
        log.info("written: %s", ", ".join(str(path) for path in paths))
    return 0


def _judge(args: argparse.Namespace) -> eval_scene.Judge | None:
    return eval_scene.load_judge(args.scene, args.overrides, args.mask_dilation) if args.scene else None


def _culled(mesh: trimesh.Trimesh, judge: eval_scene.Judge | None) -> trimesh.Trimesh:
    if judge is None:
        return mesh
    if not len(mesh.faces):
        raise UserError("--scene culls faces, and the prediction is a point cloud; leave it out")
    return judge.cull(mesh)


def _plain(mesh: trimesh.Trimesh, args: argparse.Namespace) -> tuple[Compared, str, tuple]:
    truth, judge = in_world(load_mesh(args.gt, points=True)), _judge(args)
    mesh = _culled(mesh, judge)
    if judge is None:
        counted, unit, pixel = None, 1.0, None
    else:
        centre = np.asarray(truth.centroid if len(truth.faces) else truth.vertices.mean(0))
        unit, pixel = judge.unit, judge.pixel(centre)

        def counted(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
            return judge.seen(truth, points, normals)

    try:
        result = evaluate_mesh(mesh, truth, SAMPLES, THRESHOLDS, unit=unit, counted=counted, pixel=pixel)
    except ValueError as error:
        raise UserError(f"{args.eval} against {args.gt}: {str(error).removeprefix('evaluate_mesh: ')}") from None
    result |= {"faces": len(mesh.faces), "culled": None if judge is None else judge.words}
    clouds = vertex_errors(mesh, truth, unit, counted) if args.eval_out else ()
    found = Compared(result, *clouds) if clouds else Compared(result, None, None)  # type: ignore[arg-type]
    return found, report(result), ("world units" if judge is None else "radii of the unit sphere", None, judge and "not judged: unseen")


def _dtu(mesh: trimesh.Trimesh, args: argparse.Namespace) -> tuple[Compared, str, tuple]:
    truth, judge = protocol_dtu.load_truth(args.dtu_data, args.scan), _judge(args)
    found = protocol_dtu.evaluate_dtu(_culled(mesh, judge), truth)
    found.result["culled"] = None if judge is None else judge.words
    beyond = f"beyond {protocol_dtu.FAR:g} mm: left out of the mean"
    return found, protocol_dtu.report(found.result), ("mm", beyond, "not judged: not in ObsMask, or below the plane")


def _tnt(mesh: trimesh.Trimesh, args: argparse.Namespace) -> tuple[Compared, str, tuple]:
    align = protocol_tnt.load_alignment(args.tnt_align) if args.tnt_align else None
    crop, truth = protocol_tnt.load_crop(args.tnt_crop), load_mesh(args.gt, points=True)
    found = protocol_tnt.evaluate_tnt(mesh, truth, crop, args.tnt_tau, align)
    return found, protocol_tnt.report(found.result), ("units of the truth",)
