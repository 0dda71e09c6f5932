"""Sweeps: what is left is done, what fails is named, a signal stops and saves all. The trainer is a script that pretends, but for one test."""

import contextlib
import hashlib
import json
import os
import pickle
import re
import signal
import sys
import threading
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from confs.load import load_config, to_yaml
from systems import sweep, sweep_plan, sweep_pool
from systems.sweep_plan import command, grid, read_benchmark, record, scene_folder, state
from systems.sweep_pool import Child, Pool, Slot, slots
from tests.systems.test_train import TINY
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.memory import GIB

ROOT = Path(__file__).parents[2]
CONFIG = "confs/dtu-wmask.yaml"
FAKE = """
import hashlib, json, pathlib, signal, sys, time
words = sys.argv[1:]
options = dict(word.split("=", 1) for word in words if "=" in word)
if "--eval" in words:
    folder = pathlib.Path(words[words.index("--eval-out") + 1]).parent
elif "--resume" in words:
    folder = pathlib.Path(words[words.index("--resume") + 1])
else:
    folder = pathlib.Path(options["trainer.outputs_dir"], options["name"], options["trainer.trial_name"])
def write(name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
with open(folder / "calls", "a") as file:
    file.write(json.dumps(words) + chr(10))
if "--eval" in words:
    write("mesh/metrics.json", json.dumps({"overall": 0.5, "mesh_sha256": hashlib.sha256((folder / "mesh/mesh.ply").read_bytes()).hexdigest()}))
    sys.exit(0)
if folder.name.startswith("bad"):
    print("training")
    print("error: inputs/bad: 3 images but 2 masks; add one")
    sys.exit(2)
if folder.name.startswith("idle"):
    sys.exit(0)
stopped = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
if folder.name.startswith("slow") and "--resume" not in words:
    write("going", "")
    while not stopped:
        time.sleep(0.01)
    write("ckpt/last.pt", "0.5")
    sys.exit(143)
write("ckpt/last.pt", "1")
for name in ("test/metrics.json", "mesh/mesh.ply", "video.mp4"):
    write(name, json.dumps({"psnr": float(options.get("seed", 7)), "held_out": True}))
write("made.json", json.dumps({"test": 1, "mesh": 1, "video": 1}))
"""


@pytest.fixture
def table(monkeypatch):
    """The folders that the table of runs was made of."""
    made = []
    module = types.ModuleType("systems.eval_table")
    module.write_table = lambda words, out: made.append((words, out)) or 0
    monkeypatch.setitem(sys.modules, "systems.eval_table", module)
    return made


@pytest.fixture
def swept(tmp_path, monkeypatch, table, caplog):
    """swept(words...) -> exit code of a sweep in tmp_path with the script; its checkpoints are a line of text: progress and seconds."""
    monkeypatch.setattr(sweep_plan, "reached", lambda path: (float(path.read_text()),) * 2)
    monkeypatch.setattr(sweep_pool, "LOOK", 0.01)
    monkeypatch.setattr(sweep, "setup_logging", lambda: None)
    caplog.set_level("INFO", logger="neus")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake.py").write_text(FAKE)

    def run(*words):
        for name in (w for w in words if w.startswith("in/")):
            Path(name).mkdir(parents=True, exist_ok=True)
        program = [sys.executable, "-S", str(tmp_path / "fake.py")]
        return sweep.main([str(ROOT / CONFIG), *words, "trainer.outputs_dir=out", "trainer.device=cpu"], program)

    return run


def calls(label, name="dtu-wmask"):
    path = Path("out", name, label, "calls")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_grid_is_run_once_and_ends_with_its_table(swept, table, caplog):
    words = ("--scenes", "in/a", "in/b", "--seeds", "1", "2", "trainer.max_steps=5")
    assert swept(*words) == 0
    (given,) = calls("b-seed2")
    assert given[:3] == ["--config", str(ROOT / CONFIG), "--train"]
    assert {"dataset.root_dir=in/b", "seed=2", "trainer.max_steps=5", "trainer.device=cpu"} <= set(given)
    folders = [f"out/dtu-wmask/{label}" for label in ("a-seed1", "a-seed2", "b-seed1", "b-seed2")]
    assert table == [(folders, "out/dtu-wmask")]
    assert "mean over 2 scenes, 4 runs: psnr 1.5" in caplog.text
    assert swept(*words) == 0 and len(table) == 2
    assert all(len(calls(label)) == 1 for label in ("a-seed1", "a-seed2", "b-seed1", "b-seed2"))


def test_one_failure_is_named_and_the_others_end(swept, table, caplog):
    words = ("--scenes", "in/bad", "in/idle", "in/c")
    assert swept(*words) == 1
    assert table == [(["out/dtu-wmask/c-seed1"], "out/dtu-wmask")]
    assert "failed: bad seed 1: exit code 2: inputs/bad: 3 images but 2 masks; add one" in caplog.text
    assert "failed: idle seed 1: the run is still 'new' after a process that ended well" in caplog.text
    assert "1 of 3 runs are finished" in caplog.text
    assert swept(*words) == 1
    assert [len(calls(f"{name}-seed1")) for name in ("bad", "idle", "c")] == [2, 2, 1]


def test_sigterm_stops_and_saves_and_the_same_command_goes_on(swept, caplog):
    words = ("--scenes", "in/slow", "in/later")

    def terminate():
        while not Path("out/dtu-wmask/slow-seed1/going").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    assert swept(*words) == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before
    assert Path("out/dtu-wmask/slow-seed1/ckpt/last.pt").read_text() == "0.5" and not calls("later-seed1")
    assert "the same command goes on: later seed 1, slow seed 1\n" in caplog.text and "start: later" not in caplog.text
    assert swept(*words) == 0
    (_, resumed), (first,) = calls("slow-seed1"), calls("later-seed1")
    assert resumed[:3] == ["--train", "--resume", "out/dtu-wmask/slow-seed1"] and "--config" not in resumed
    assert first[0] == "--config"


def one(**more):
    Path("in/a").mkdir(parents=True, exist_ok=True)
    overrides = ["trainer.outputs_dir=out", *more.pop("overrides", [])]
    (run,) = grid(read_benchmark(ROOT / CONFIG), ["in/a"], [1], overrides=overrides, **more)
    return run


def write(run, name, text="", age=0.0):
    path = run.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1e9 - age, 1e9 - age))


def test_only_what_lies_in_the_folder_makes_a_run_finished(swept):
    run = one(film=False)
    assert state(run) == "new" and command(run, "new", "cpu", 2)[-2:] == ["trainer.device=cpu", "trainer.threads=2"]
    record(run)
    write(run, "ckpt/last.pt", "0.99", age=5)
    write(run, "test/metrics.json")
    write(run, "mesh/mesh.ply")
    assert state(run) == "begun"
    write(run, "ckpt/last.pt", "1", age=5)
    assert state(run) == "finished" and command(run, "finished", "cpu", 2) == []
    write(run, "mesh/mesh.ply", age=9)  # of an earlier checkpoint
    assert state(run) == "trained"
    assert command(run, "trained", "cpu", 2)[:4] == ["--train", "--no-video", "--resume", str(run.folder)]
    (run.folder / "mesh/mesh.ply").unlink()
    write(run, "mesh/mesh.obj")
    assert state(run) == "trained"
    assert state(replace(run, ends=())) == "finished"  # trainer.finish=false
    write(run, "mesh/mesh.ply")
    filmed = one(film=True)
    assert filmed.ends == (*run.ends, "video.[mg]*") and state(filmed) == "trained"
    write(run, "video.part.mp4")  # half of one
    assert state(filmed) == "trained"
    write(run, "video.gif")
    assert state(filmed) == "finished"


def test_no_clock_decides_what_is_finished(swept):
    """What was made of which weights is recorded: a clock that was set back, or a copy of the folder, changes nothing."""
    run = one(film=False)
    write(run, "ckpt/last.pt", "1.5")
    write(run, "test/metrics.json", age=1000)
    write(run, "mesh/mesh.ply", "ply", age=1000)
    write(run, "made.json", '{"test": 1.5, "mesh": 1.5}', age=1000)
    assert state(run) == "finished"
    write(run, "made.json", '{"test": 1.5, "mesh": 1.25}')  # of an earlier checkpoint
    assert state(run) == "trained"
    write(run, "made.json", '{"test": 1.5}')
    assert state(run) == "trained"
    write(run, "made.json", '{"test": 1.5, "mesh": 1.5}')
    judging = replace(run, evaluate=("--eval",))
    write(run, "mesh/metrics.json", '{"chamfer": 1}')  # not by --eval
    assert state(judging) == "tested"
    write(run, "mesh/metrics.json", json.dumps({"mesh_sha256": hashlib.sha256(b"ply").hexdigest()}), age=1000)
    assert state(judging) == "finished"
    write(run, "mesh/mesh.ply", "another", age=2000)
    assert state(judging) == "tested"


@pytest.mark.parametrize(("step", "seconds", "expected"), [(4, 90.0, 0.75), (10, 0.0, 1)])
def test_progress_is_read_from_the_checkpoint(step, seconds, expected, tmp_path):
    text = to_yaml(load_config(CONFIG, ["trainer.max_steps=10", "trainer.max_minutes=2"]))
    save_checkpoint(tmp_path / "a.pt", {"config": text, "model": {}, "step": step, "trained_seconds": seconds})
    assert sweep_plan.reached(tmp_path / "a.pt") == (expected, seconds)
    (tmp_path / "a.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match="truncated"):
        sweep_plan.reached(tmp_path / "a.pt")


def test_a_folder_that_another_process_writes_into_is_left_alone(swept, caplog):
    lock = sweep_pool.locked(Path("out/dtu-wmask/a-seed1"))
    assert swept("--scenes", "in/a", "in/b") == 1 and not calls("a-seed1") and len(calls("b-seed1")) == 1
    assert "another process is at work in out/dtu-wmask/a-seed1" in caplog.text
    lock.close()
    assert swept("--scenes", "in/a", "in/b") == 0


def test_runs_of_other_options_are_not_taken_for_these(swept, caplog):
    assert swept("--scenes", "in/a", "optim.lr=0.02") == 0
    assert swept("--scenes", "in/a", "optim.lr=0.02", "trainer.threads=1") == 0  # changes nothing of the result
    assert len(calls("a-seed1")) == 1
    assert swept("--scenes", "in/a", "optim.lr=0.03") == 2
    assert "out/dtu-wmask/a-seed1 was made with other options (optim.lr 0.02, now 0.03)" in caplog.text
    assert swept("--scenes", "in/a", "optim.lr=0.03", "--name", "lr3") == 0 and len(calls("a-seed1", "lr3")) == 1
    Path("out/mine/a-seed1/ckpt").mkdir(parents=True)
    assert swept("--scenes", "in/a", "--name", "mine") == 2 and "was not made by a sweep" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scenes", "in/a", "none"], "no folder for none here .*--scenes in/a are there"),
        (["--scenes", "in/a", "--data", "a\nb"], "no folder for in/a in a b"),
        (["--scenes", "in/a", "seed=3"], "seed is set by the sweep; give --seeds"),
        (["--scenes", "in/a", "optim.lrr=3"], "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        (["--scenes", "in/a", "in/b/a"], "in/a and in/b/a would share a run folder"),
        (["--scenes", "in/a", "--name", "x/y"], "--name x/y: expected the name of a folder"),
        (["--scenes", "in/a", "--jobs", "0"], "--jobs: at least 1"),
        (["--scenes", "in/a", "--memory", "-1"], "--memory: a number of gigabytes"),
        (["--scenes", "in/a", "--truth", "in/a"], "--truth: .* does not say how to judge"),
        (["--scenes", "in/a", "--config", "x.yaml"], "--config goes with a list of scenes"),
        (["--scenes", "in/a", "--seeds", "one"], "invalid int value: 'one'"),
        ([], "which scenes?"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_starts_nothing(words, message, swept, caplog):
    assert swept(*words) == 2
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert re.search(message, said) and "\n" not in said, said
    assert not Path("out").exists()


def test_places_for_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert slots("auto", None, 0, 0) == [Slot("cpu", 8)]
    assert slots("auto", 3, 0, 0) == [Slot("cpu", 2)] * 3
    assert slots("cpu", 2, 1, 4) == [Slot("cpu", 1)] * 2
    assert slots("auto", None, 0, 2) == [Slot("cuda:0", 4), Slot("cuda:1", 4)]
    assert slots("cuda", 1, 0, 2) == [Slot("cuda:0", 8)]
    assert slots("cuda:1", 5, 0, 2) == [Slot("cuda:1", 8)]
    with pytest.raises(UserError, match="no CUDA device"):
        slots("cuda", None, 0, 0)


def test_memory_bounds_how_many_run(swept, monkeypatch, caplog):
    """4 GiB each: what the first has not taken yet is kept for it."""
    pool = Pool([Slot("cpu", 1)] * 2, 4.0, free=lambda: int(6.5 * GIB))
    pool.going[0] = Child(None, "new", types.SimpleNamespace(pid=1), None)
    for taken, room in ((0.0, False), (1.4, False), (1.6, True), (5.0, True)):
        monkeypatch.setattr(sweep_pool, "resident", lambda pid, taken=taken: int(taken * GIB))
        assert pool._room() is room
    assert "6.5 GiB are free, 4.0 of them for the runs that go on, and one takes 4.0" in caplog.text
    pool.going.clear()
    pool.free = lambda: 0
    assert pool._room()  # the first always starts
    assert sweep_pool.resident(os.getpid()) >= 0


@pytest.mark.parametrize(("free", "together"), [(1, 1), (100, 2)])
def test_as_many_run_together_as_fit(free, together, swept, monkeypatch):
    most, real = [], Pool._look

    def look(self, place):
        most.append(len(self.going))
        real(self, place)

    monkeypatch.setattr(Pool, "_look", look)
    for name in ("a", "b", "c"):
        Path("in", name).mkdir(parents=True)
    runs = grid(read_benchmark(ROOT / CONFIG), ["in/a", "in/b", "in/c"], [1], overrides=["trainer.outputs_dir=out"])
    pool = Pool([Slot("cpu", 1)] * 2, 4.0, [sys.executable, "-S", "fake.py"], free=lambda: free * GIB)
    assert len(pool.work(runs).finished) == 3 and max(most) == together


@pytest.mark.parametrize(("name", "count"), [("dtu", 15), ("nerf-synthetic", 8), ("blendedmvs", 8)])
def test_published_scenes(name, count, tmp_path, caplog):
    bench = read_benchmark(ROOT / f"confs/benchmarks/{name}.yaml")
    assert len(set(bench.scenes)) == count and bench.protocol
    for i, scene in enumerate(bench.scenes):
        (tmp_path / bench.folders[i % len(bench.folders)].format(scene=scene)).mkdir()
    assert all(scene_folder(scene, tmp_path, bench.folders) for scene in bench.scenes)
    (run,) = grid(bench, bench.scenes[-1:], bench.seeds, tmp_path)
    assert run.asked["dataset.img_downscale"] == 1 and "has no effect" not in caplog.text


@pytest.mark.parametrize("text", ["", "3", "[]", '"x"', "[" * 5000, "\xff"])
def test_a_damaged_record_is_named(text, swept, caplog):
    """Regression: one that is no mapping was a traceback."""
    run = one()
    write(run, "ckpt/last.pt", "1")
    (run.folder / "asked.json").write_bytes(text.encode("latin-1"))
    assert swept("--scenes", "in/a") == 2 and "out/dtu-wmask/a-seed1/asked.json is damaged; move" in caplog.text


@pytest.mark.parametrize("text", ["[]", "\xff", "{", '{"psnr": ' + "9" * 400 + "}", '{"psnr": 1e999}', '{"psnr": true}', "[" * 5000])
def test_damaged_figures_are_not_averaged(text, swept, caplog):
    """Regression: they were tracebacks, after all runs had ended."""
    assert swept("--scenes", "in/a") == 0
    Path("out/dtu-wmask/a-seed1/test/metrics.json").write_bytes(text.encode("latin-1"))
    assert swept("--scenes", "in/a") == 0 and "no figure that all runs have" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: " + "9" * 5000, "cannot be read"), ("[" * 5000, "cannot be read"), ("config: x\nscenes: [a]\nfolders: ['{']", r"folders: '\{', in which only \{scene\} are"),
        ("config: x\nscenes: [a]\nfolders: ['{scene.x}']", "folders: '{scene.x}'"), ("config: x\nscenes: [a]\nevaluate: ['{nothing}']", "evaluate: '{nothing}'"),
    ],
)  # fmt: skip
def test_a_list_that_no_one_can_follow(text, message, tmp_path):
    """Regression: all of these were tracebacks."""
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_benchmark(tmp_path / "list.yaml")


def test_a_list_that_is_a_device_is_not_read_for_ever():
    with pytest.raises(UserError, match="/dev/zero cannot be read"):
        read_benchmark(Path("/dev/zero"))


def test_a_list_of_scenes_is_checked(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("scenes: [a, 3]\nseed: 4\n")
    with pytest.raises(
        UserError, match="unknown key 'seed'; did you mean 'seeds'.*config: expected a file.*scenes: expected a list of words"
    ):
        read_benchmark(path)
    with pytest.raises(UserError, match="dtu-wmsk.yaml does not exist; did you mean 'dtu-wmask.yaml'"):
        read_benchmark(ROOT / "confs/dtu-wmsk.yaml")


def test_runs_are_judged_by_the_protocol_of_the_list(tmp_path, swept, table):
    (tmp_path / "data/dtu_scan24").mkdir(parents=True)
    words = [
        str(ROOT / "confs/benchmarks/dtu.yaml"),
        "--data",
        "data",
        "--scenes",
        "scan24",
        "--truth",
        "official",
        "trainer.outputs_dir=out",
    ]
    assert sweep.main(words, [sys.executable, "-S", "fake.py"]) == 0
    trained, judged = calls("scan24-seed1", "benchmark-dtu")
    assert "--train" in trained
    folder = "out/benchmark-dtu/scan24-seed1"
    assert judged[:7] == ["--eval", f"{folder}/mesh/mesh.ply", "--protocol", "dtu", "--dtu-data", "official", "--scan"]
    assert judged[7:] == ["24", "--scene", "data/dtu_scan24", "--mask-dilation", "50", "--eval-out", f"{folder}/mesh"]
    assert sweep.main(words, [sys.executable, "-S", "fake.py"]) == 0 and len(calls("scan24-seed1", "benchmark-dtu")) == 2
    try:
        from systems import cli_eval  # noqa: F401
    except ImportError:
        return
    from systems.cli import parse

    assert parse(judged).scan == 24


def test_list_starts_nothing(swept, table, caplog):
    assert swept("--scenes", "in/a") == 0
    assert swept("--scenes", "in/a", "in/b", "--list") == 0 and not calls("b-seed1")
    assert "finished  a seed 1" in caplog.text and "new       b seed 1" in caplog.text and table[-1][0] == ["out/dtu-wmask/a-seed1"]


def test_without_the_table_each_run_is_a_line(swept, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "systems.eval_table", None)
    assert swept("--scenes", "in/a") == 0
    assert "a seed 1: mesh     out/dtu-wmask/a-seed1/mesh/mesh.ply" in caplog.text and "psnr 1.000" in caplog.text


def test_slurm_without_submitit_says_what_to_install(swept, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert swept("--scenes", "in/a", "--slurm") == 2 and "pip install submitit" in caplog.text
    assert swept("--scenes", "in/a", "--slurm", "partition") == 2


def test_slurm_takes_what_is_not_finished(swept, monkeypatch, caplog):
    submitted, wanted = [], {}

    class Executor:
        def __init__(self, folder, cluster):
            assert (folder, cluster) == ("out/dtu-wmask/slurm", "slurm")

        def update_parameters(self, **more):
            wanted.update(more)

        def batch(self):
            return contextlib.nullcontext()

        def submit(self, function, *more):
            submitted.append(function)
            return types.SimpleNamespace(job_id=f"7_{len(submitted) - 1}")

    fake = types.ModuleType("submitit")
    fake.AutoExecutor, fake.helpers = Executor, types.ModuleType("submitit.helpers")
    fake.helpers.DelayedSubmission = lambda job: ("again", job)
    monkeypatch.setitem(sys.modules, "submitit", fake)
    monkeypatch.setitem(sys.modules, "submitit.helpers", fake.helpers)
    assert swept("--scenes", "in/a") == 0
    assert swept("--scenes", "in/a", "in/b", "--slurm", "slurm_partition=gpu,timeout_min=30") == 0
    (job,) = submitted
    assert "job 7_0: b seed 1" in caplog.text and not calls("b-seed1")
    assert wanted == {"name": "dtu-wmask", "gpus_per_node": 0, "mem_gb": 4.0, "slurm_partition": "gpu", "timeout_min": 30}
    again, other = job.__submitit_checkpoint__()
    assert again == "again" and other.run is job.run and job.checkpoint() is not None
    monkeypatch.setattr("systems.sweep_slurm.Pool", lambda *more: Pool(*more, program=[sys.executable, "-S", "fake.py"]))
    assert pickle.loads(pickle.dumps(other))() == "finished" and len(calls("b-seed1")) == 1


@pytest.mark.slow
def test_a_real_run_and_the_mesh_that_went_missing(tiny_scene, tmp_path, table):
    """Through run.py: what is finished is not trained again, and what is missing is made from the same weights."""
    more = ["trainer.max_steps=6", "trainer.threads=1", f"trainer.outputs_dir={tmp_path}", "--no-video", "--name", "n"]
    words = [CONFIG, "--scenes", str(tiny_scene), "--seeds", "3", *[w for w in TINY if not w.startswith("seed=")], *more]
    assert sweep.main(words) == 0
    folder = tmp_path / "n" / f"{tiny_scene.name}-seed3"
    first = load_checkpoint(folder)
    assert first["step"] == 6 and "seed: 3" in first["config"] and (folder / "test/metrics.json").exists()
    (folder / "mesh/mesh.ply").unlink()
    assert sweep.main(words) == 0 and (folder / "mesh/mesh.ply").exists()
    again = load_checkpoint(folder)
    assert again["step"] == 6 and all(torch.equal(first["model"][k], again["model"][k]) for k in first["model"])
