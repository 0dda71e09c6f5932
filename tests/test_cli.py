"""The command line: every wrong input is one clear sentence and a non-zero exit, never a traceback; the right one does it all."""

import json
import pickle
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
import trimesh

import run
from systems import cli as cli_flags
from systems.run import unused
from tests.scenes import AXES
from tests.systems.test_train import MEAN_DISTANCE, TINY


def cli(capsys, *words):
    """Exit code and everything printed."""
    code = run.main(list(words))
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def refused(capsys, pattern, *words):
    code, text = cli(capsys, *words)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1, text
    assert re.search(pattern, errors[0]), errors[0]
    assert "Traceback" not in text


def train_words(scene, out, *more):
    return [
        "--config",
        "confs/dtu-wmask.yaml",
        "--train",
        *TINY,
        f"dataset.root_dir={scene}",
        f"trainer.outputs_dir={out}",
        "trainer.trial_name=t",
        "name=n",
        *more,
    ]


def test_photographs_have_their_config_wherever_the_program_is_called_from(tmp_path, monkeypatch, capsys):
    """Regression: from another folder, "config confs/neus-colmap.yaml does not exist"."""
    monkeypatch.chdir(tmp_path)
    refused(capsys, "none: no such folder; expected the folder of your photographs", "--photos", "none")


@pytest.mark.parametrize("flags", [["--eval", "LONG.ply", "--gt", "x.ply"], ["--photos", "LONG"], ["--test", "--resume", "LONG"]])
def test_a_name_that_is_too_long_is_told(flags, capsys):
    """Regression: a traceback."""
    refused(capsys, "xxx...: the name is too long for a file", *(word.replace("LONG", "x" * 5000) for word in flags))


def test_the_folder_of_a_scene_is_enough(capsys, tiny_scene, tmp_path):
    words = [
        word for word in train_words(tiny_scene, tmp_path, "trainer.max_steps=2", "trainer.finish=false")[2:] if "dataset.name" not in word
    ]
    code, text = cli(capsys, *words)
    assert code == 0 and "recognised as dtu by cameras_sphere.npz" in text
    saved = (tmp_path / "n/t/config.yaml").read_text()
    assert "name: neus" in saved and "name: dtu" in saved


@pytest.fixture(scope="module")
def finished(tiny_scene, tmp_path_factory):
    """One whole run: train, test, mesh, video."""
    out = tmp_path_factory.mktemp("outputs")
    assert run.main(train_words(tiny_scene, out, "trainer.max_steps=120", "trainer.val_minutes=0.001")) == 0
    return out / "n/t"


def test_a_whole_run_leaves_the_whole_folder(finished, tiny_scene):
    for name in (
        "config.yaml",
        "commit.txt",
        "log.txt",
        "metrics.jsonl",
        "ckpt/last.pt",
        "test/metrics.json",
        "mesh/mesh.ply",
        "mesh/mesh.png",
        "mesh/mesh.obj",
        "report.html",
    ):
        assert (finished / name).stat().st_size > 0, name
    assert any((finished / f"video.{kind}").exists() for kind in ("mp4", "gif"))
    page = (finished / "report.html").read_text()
    assert page.count('<figure class="view"') == 2 and "<video" in page and 'id="mesh"' in page
    assert list((finished / "images").glob("val_*.png")) and list((finished / "tb").iterdir())
    metrics = json.loads((finished / "test/metrics.json").read_text())
    assert metrics["psnr"] > 19.5 and metrics["ssim"] > 0.65 and metrics["psnr_masked"] > 13
    assert [(v["view"], v["size"]) for v in metrics["views"]] == [(0, [32, 24]), (4, [32, 24])]
    assert all((finished / f"test/{v:03d}.png").exists() for v in (0, 4))


def test_the_mesh_lies_in_world_units_with_colours(finished, tiny_scene):
    mesh = trimesh.load(finished / "mesh/mesh.ply", process=False)
    scale_mat = np.load(tiny_scene / "cameras_sphere.npz")["scale_mat_0"]
    local = (np.asarray(mesh.vertices) - scale_mat[:3, 3]) / scale_mat[0, 0]
    off = (np.linalg.norm(local / AXES, axis=1) - 1) * min(AXES)  # about the distance to the ellipsoid
    assert np.abs(off).mean() < MEAN_DISTANCE
    assert np.asarray(mesh.visual.vertex_colors)[:, :3].std() > 1
    with open(finished / "mesh/mesh.obj") as file:
        first = next(line for line in file if line.startswith("v "))
    assert len(first.split()) == 7


def test_test_and_mesh_from_the_checkpoint_alone(finished, capsys):
    before = json.loads((finished / "test/metrics.json").read_text())
    code, text = cli(capsys, "--test", "--mesh", "--resume", str(finished), "dataset.test_steps=2")
    assert code == 0, text
    after = json.loads((finished / "test/metrics.json").read_text())
    assert after["psnr"] == pytest.approx(before["psnr"], abs=1e-4)


def test_eval(finished, capsys):
    ply = str(finished / "mesh/mesh.ply")
    code, text = cli(capsys, "--eval", ply, "--gt", ply)
    assert code == 0 and "hamfer" in text
    refused(capsys, "--gt", "--eval", ply)
    refused(capsys, "nothere.ply", "--eval", "nothere.ply", "--gt", ply)


def test_eval_of_the_held_out_views(finished, capsys):
    before = json.loads((finished / "test/metrics.json").read_text())
    code, text = cli(capsys, "--eval", "--resume", str(finished))
    assert code == 0 and "2 held-out views, at full size" in text and "about" in text, text
    after = json.loads((finished / "test/metrics.json").read_text())
    assert after["psnr"] == pytest.approx(before["psnr"], abs=1e-4) and after["scale"] == 1 and "lpips" in after
    assert after["ssim_masked"] < after["ssim"]  # most of a picture is black


def test_help_has_examples():
    assert "run.py --config confs/dtu.yaml --train" in cli_flags.parser().format_help()


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["--trian"], "unknown flag '--trian'; did you mean '--train'"),
        (["--train", "--config", "confs/dtuu.yaml"], r"did you mean 'dtu\.yaml'|did you mean"),
        (
            ["--train", "--config", "confs/dtu.yaml", "trainer.max_step=3"],
            "unknown key 'trainer.max_step'; did you mean 'trainer.max_steps'",
        ),
        (["--train", "--config", "confs/dtu.yaml", "trainer.max_steps=soon"], "trainer.max_steps"),
        (["--train", "--config", "confs/dtu.yaml", "trainer.max_steps=-1"], "trainer.max_steps: must be at least 1, got -1"),
        (["--train", "--config", "confs/dtu.yaml", "nonsense"], "no override"),
        (["--train", "--config"], "expected one argument"),
        ([], "nothing to do"),
        (["--train"], "which scene"),
        (["--test", "--config", "confs/dtu.yaml"], "need --resume"),
        (["--test", "--resume", "not/there"], "no such file"),
        (["--train", "--config", "confs/nero.yaml", "model.material.n_difuse=3"], "did you mean 'model.material.n_diffuse'"),
        (["--train", "--config", "confs/nero.yaml", "--resume", "a"], "goes on with --train --resume and its folder, without --config"),
        (["--relight", "--hdr", "a.hdr"], "--relight needs --resume"),
        (["--train", "--config", "confs/dtu.yaml", "--hdr", "a.hdr"], "--hdr goes with --relight"),
        (["--train", "--config", "confs/dtu.yaml", "--poses", "a.json"], "--poses goes with --relight"),
        (["--train", "--config", "confs/dtu.yaml", "--gt", "a.ply"], "--gt goes with --eval"),
        (["--eval", "a.ply", "--gt", "b.ply", "--train"], "--eval does not go with --train"),
        (["--eval", "a.ply", "--gt", "b.ply", "--resume", "c"], "--resume has no effect on --eval"),
        (["--eval"], "--eval needs a mesh .* or --resume"),
        (["--eval", "a.ply"], "--eval MESH needs --gt, the true mesh"),
        (["--eval", "--resume", "a", "--gt", "b.ply"], "--gt has no effect on --eval --resume"),
        (["--resume", "not/there", "--eval", "trainer.chunk=64"], "not/there: no such file"),
        (["--eval", "a.ply", "--gt", "b.ply", "dataset.hold_every=4"], "dataset.hold_every=4 has no effect on --eval MESH without --scene"),
        (["--eval", "a.ply", "--gt", "b.ply", "--mask-dilation", "5"], "--mask-dilation goes with --scene"),
        (["--eval", "a.ply", "--gt", "b.ply", "--scan", "24"], "--scan goes with --protocol dtu"),
        (["--eval", "a.ply", "--gt", "b.ply", "--tnt-tau", "1"], "--tnt-tau goes with --protocol tnt"),
        (["--eval", "a.ply", "--protocol", "dtu", "--scan", "24"], "--protocol dtu needs --dtu-data"),
        (["--eval", "a.ply", "--protocol", "dtu", "--scan", "x", "--dtu-data", "d"], "--scan: invalid int value: 'x'"),
        (["--eval", "a.ply", "--protocol", "dtu", "--scan", "1", "--dtu-data", "d", "--gt", "b"], "--gt has no effect on --protocol dtu"),
        (["--eval", "a.ply", "--protocol", "dtu", "--scan", "0", "--dtu-data", "d"], "--scan: must be the number of a DTU scan"),
        (["--eval", "a.ply", "--protocol", "tnt", "--gt", "b.ply"], "--protocol tnt needs --tnt-crop and --tnt-tau"),
        (["--eval", "a.ply", "--protocol", "tnt", "--gt", "b", "--tnt-crop", "c", "--tnt-tau", "0"], "--tnt-tau: must be a positive"),
        (["--eval", "a.ply", "--protocol", "iou", "--gt", "b.ply"], "invalid choice: 'iou'"),
        (["--eval-out", "d", "--test", "--resume", "a"], "--eval-out goes with --eval MESH or --eval-table"),
        (["--scene", "d", "--test", "--resume", "a"], "--scene goes with --eval"),
        (["--eval-table"], "expected at least one argument"),
        (["--eval-table", "a", "--train"], "--eval-table does not go with --train"),
        (["--eval-table", "a", "--resume", "b"], "--resume has no effect on --eval-table"),
        (["--eval-table", "a", "--gt", "b"], "--gt goes with --eval"),
        (["--relight", "--resume", "a", "--hdr", "b.hdr", "--config", "confs/dtu.yaml"], "--config has no effect on --relight"),
        (["--relight", "--resume", "a", "--hdr", "b.hdr", "--mesh"], "--relight does not go with --mesh"),
        (["--train", "--config", "confs/dtu.yaml", "--mask-model", "a.onnx"], "--mask-model goes with --auto-mask"),
        (["--auto-mask", "dataset.root_dir=a", "--mask-norm", "unit"], "--mask-norm goes with --mask-model"),
        (["--auto-mask", "dataset.root_dir=a", "--mask-model", "a.onnx", "--mask-norm", "minmax"], "invalid choice: 'minmax'"),
        (["--auto-mask", "dataset.root_dir=inputs/none-such", "--mask-model", "a.onnx"], "inputs/none-such"),
        (["--test", "--resume", "a", "--preset", "fast"], "--preset goes with --train"),
        (["--train", "--config", "confs/dtu.yaml", "model.backdrop.far=5"], "'model.backdrop.far' is now 'model.background_field.far'"),
        (["--train", "--config", "confs/dtu.yaml", "trainer.keep=2"], "'trainer.keep' is gone"),
        (["--train", "--config", "confs/dtu.yaml", "--marker-size", "50"], "dataset.marker_size: must be the side of a marker in metres"),
        (["--test", "--resume", "a", "--marker-size", "0.05"], "--marker-size goes with --train or --mesh"),
        (["--train", "--config", "confs/dtu.yaml", "--scale-distance", "-1,0,0 1,0,0 -2"], "--scale-distance: the distance is -2 m"),
        (["--train", "--config", "confs/dtu.yaml", "--scale-distance", "1,0,0 2"], '--scale-distance: expected "x,y,z x,y,z METRES"'),
    ],
)
def test_wrong_words(capsys, words, pattern):
    refused(capsys, pattern, *words)


def _drop_image(scene):
    for path in (scene / "image").iterdir():
        path.unlink()


def _truncate(scene):
    path = sorted((scene / "image").iterdir())[2]
    path.write_bytes(path.read_bytes()[:-40])


def _resize_mask(scene):
    path = sorted((scene / "mask").iterdir())[1]
    cv2.imwrite(str(path), cv2.imread(str(path))[:-3])


def _black_masks(scene):
    for path in (scene / "mask").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path)) * 0)


def _npz(change):
    def edit(scene):
        path = scene / "cameras_sphere.npz"
        data = dict(np.load(path))
        change(data)
        np.savez(path, **data)

    return edit


def _singular(data):
    data["world_mat_1"][:3, 0] = data["world_mat_1"][:3, 1]


def _mirrored(data):
    data["world_mat_1"] = data["world_mat_1"] @ np.diag([-1.0, 1, 1, 1])


BAD_SCENES = {
    "missing folder": (shutil.rmtree, "does not exist|no such folder|missing"),
    "no images": (_drop_image, "no image"),
    "fewer masks": (lambda s: (s / "mask/003.png").unlink(), r"003\.png is missing.*dataset\.masks=false"),
    "mask of another size": (_resize_mask, r"001\.png"),
    "truncated image": (_truncate, r"000002\.png.*truncated"),
    "no world_mat_3": (_npz(lambda d: d.pop("world_mat_3")), "world_mat_3"),
    "singular camera": (_npz(_singular), "world_mat_1.*singular"),
    "mirrored camera": (_npz(_mirrored), "world_mat_1.*mirrored"),
    "black masks": (_black_masks, "black"),
    "npz of text": (lambda s: (s / "cameras_sphere.npz").write_text("hello"), r"cameras_sphere\.npz"),
}


@pytest.mark.parametrize("name", BAD_SCENES)
def test_bad_scenes(name, capsys, tiny_scene, tmp_path):
    spoil, pattern = BAD_SCENES[name]
    scene = tmp_path / "scene"
    shutil.copytree(tiny_scene, scene)
    spoil(scene)
    refused(capsys, pattern, *train_words(scene, tmp_path / "out", "trainer.max_steps=2"))


@pytest.mark.slow
def test_options_are_read_before_cameras_are_found(capsys, tmp_path, monkeypatch):
    """Structure from motion takes minutes: a misspelt option is told before."""
    from process_data import sfm

    monkeypatch.setattr(sfm, "reconstruct", lambda *args: pytest.fail("cameras were looked for"))
    refused(capsys, "unknown key 'trainer.max_minuts'", "--photos", str(tmp_path), "--train", "trainer.max_minuts=3")


def test_an_empty_mask_of_a_held_out_view_leaves_out_that_views_figure(capsys, tiny_scene, tmp_path):
    """Regression: a TypeError after training; no metrics, no mesh."""
    scene = tmp_path / "scene"
    shutil.copytree(tiny_scene, scene)
    path = scene / "mask/000.png"
    cv2.imwrite(str(path), cv2.imread(str(path)) * 0)
    code, text = cli(capsys, *train_words(scene, tmp_path / "out", "trainer.max_steps=30"))
    assert code == 0 and "the mask is empty in 1 of 2 held-out views" in text, text
    metrics = json.loads((tmp_path / "out/n/t/test/metrics.json").read_text())
    assert metrics["views"][0]["psnr_masked"] is None and metrics["psnr_masked"] == metrics["views"][1]["psnr_masked"]


def test_cameras_inside_the_sphere_are_warned_of(capsys, tiny_scene, tmp_path):
    scene = tmp_path / "scene"
    shutil.copytree(tiny_scene, scene)

    def enlarge(data):
        for key in list(data):
            if key.startswith("scale_mat"):
                data[key][:3, :3] *= 20

    _npz(enlarge)(scene)
    code, text = cli(capsys, *train_words(scene, tmp_path / "out", "trainer.max_steps=2", "trainer.finish=false"))
    assert "inside the sphere" in text and code == 0, text


def _code(path):
    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(path.with_name('was-run'))!r}, 'w')",)

    path.write_bytes(pickle.dumps(Evil()))


BAD_CHECKPOINTS = {
    "text": (lambda p, _: p.write_text("hello"), "not a checkpoint"),
    "truncated": (lambda p, good: p.write_bytes(good.read_bytes()[:5000]), "truncated"),
    "code": (lambda p, _: _code(p), "not a checkpoint"),
    "foreign": (lambda p, _: torch.save({"state_dict": {}}, p), "lacks the config"),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_bad_checkpoints(name, capsys, finished, tmp_path):
    spoil, pattern = BAD_CHECKPOINTS[name]
    path = tmp_path / "x.pt"
    spoil(path, finished / "ckpt/last.pt")
    refused(capsys, pattern, "--test", "--resume", str(path))
    assert not (tmp_path / "was-run").exists()


def test_checkpoint_of_another_architecture(capsys, finished):
    refused(capsys, "another architecture", "--test", "--resume", str(finished), "model.sdf.hidden=32")


def test_output_folder_that_cannot_be_written(capsys, tiny_scene, tmp_path):
    (tmp_path / "file").write_text("")
    refused(capsys, "cannot be made", *train_words(tiny_scene, tmp_path / "file", "trainer.max_steps=2"))


def test_empty_mesh_says_why(capsys, finished):
    state = torch.load(finished / "ckpt/last.pt", weights_only=True)
    state["model"]["sdf.out.bias"][0] += 10
    path = finished.parent / "empty.pt"
    torch.save(state, path)
    refused(capsys, "no surface.*inv_s", "--mesh", "--resume", str(path), f"trainer.outputs_dir={finished.parent}")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")])
def test_too_little_memory_is_one_line(error, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("systems.run.prepare", fail)
    refused(capsys, "the memory does not suffice; .* trainer.target_samples", "--train", "--config", "confs/dtu.yaml")


def test_other_errors_of_the_program_are_not_hidden(monkeypatch):
    def fail(*_):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("systems.run.prepare", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        run.main(["--train", "--config", "confs/dtu.yaml"])


def test_a_time_of_day_that_comes_twice_gives_two_run_folders(tmp_path):
    """A clock is set back, or two runs start in one second."""
    assert unused(tmp_path, "a") == "a"
    for name in ("a", "a-2"):
        (tmp_path / name).mkdir()
    assert unused(tmp_path, "a") == "a-3"
