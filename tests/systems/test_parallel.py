"""Several processes train as one: the same gradients, the same decisions, and none waits for ever when one has ended."""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

import process_data.rays
from process_data.load import load_scene
from process_data.rays import RayDataset, mixed_seed
from systems import parallel
from systems.base import REFRESH
from systems.losses import TERMS
from systems.parallel import ALONE, COMMON, Ranks
from systems.run import left_behind
from systems.together import COUNTED
from tests.systems.ranks import ROOT, first_step, make, spawn
from tests.systems.test_train import TINY, config, same
from utils.checkpoint import load_checkpoint
from utils.errors import UserError

OVER_RAYS = {"rgb", "rgb_mse", "rgb_smooth_l1", "rgb_charbonnier", "mask", "opaque", "distortion", "distortion_bg", "free", "patches"}
STEPS, KILLED = 40, 21  # of the runs by command, and after which step the second process is killed: one before a refresh of the grid


def finish(processes, timeout=200):
    outputs = [p.communicate(timeout=timeout)[0] for p in processes]
    return [p.returncode for p in processes], outputs


# ------------------------------------------------------------------ without processes


def test_of_every_term_it_is_known_over_what_it_is_a_mean():
    """A new loss term must say whether it is a mean over rays, or equally many values in each process (here), or over something else (COUNTED)."""
    assert set(TERMS) == OVER_RAYS | set(COUNTED) and not OVER_RAYS & set(COUNTED)


def test_the_batches_of_the_processes_are_parts_of_one(tiny_scene, tmp_path, monkeypatch):
    cfg = config(tiny_scene, tmp_path)
    scene = load_scene(cfg.dataset, 1.0)
    whole = RayDataset(scene, 1.0, 3)[7, 60]
    parts = [RayDataset(scene, 1.0, 3, share=(rank, 3))[7, 20] for rank in range(3)]
    for name in ("rgb", "mask", "view"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert torch.equal(torch.cat([part.rays.dirs for part in parts]), whole.rays.dirs)


def test_all_processes_take_the_folder_of_the_first(monkeypatch):
    """Regression: without trainer.trial_name each had a folder of its own, and swept the scene again."""
    sent = []
    monkeypatch.setattr(Ranks, "sums", lambda self, numbers: sent.append(numbers) or [sum(n) for n in zip(*sent)])
    first, second = (Ranks(rank=rank, world=2, local=rank, local_world=2) for rank in (0, 1))
    assert first.name_from_first("20261127-é") == "20261127-é" == second.name_from_first("20261127-é-2")


def test_a_process_that_is_not_the_first_reads_in_its_folder(tiny_scene, tmp_path, monkeypatch):
    from systems import run as commands

    class Second(Ranks):
        def sums(self, numbers):
            return numbers

        def name_from_first(self, name):
            return "first"

        def device(self, name):
            return torch.device("cpu")

    def stop(job, scene, run, *rest):
        assert run.root == tmp_path / "n/first" and not run.root.exists()
        raise UserError("here")

    monkeypatch.setattr(commands, "start", lambda: Second(1, 2, 1, 2))
    monkeypatch.setattr(commands, "trainer_of", stop)
    more = [*TINY, f"dataset.root_dir={tiny_scene}", f"trainer.outputs_dir={tmp_path}", "name=n", "dataset.name=dtu"]
    with pytest.raises(UserError, match="here"):
        commands.execute(commands.prepare(None, None, more), True, False, False)


def test_draws_are_parts_of_one_and_alone_they_are_torchs():
    cpu = torch.device("cpu")
    torch.manual_seed(3)
    whole = torch.rand(30, 2)
    parts = []
    for rank in range(3):
        torch.manual_seed(3)
        parts.append(Ranks(rank, 3).drawn(torch.rand, 10, 2, device=cpu))
    assert torch.equal(torch.cat(parts), whole)
    torch.manual_seed(3)
    ALONE.begin(5, 1)
    ALONE.part_ways()
    assert torch.equal(ALONE.drawn(torch.rand, 30, 2, device=cpu), whole)


def test_processes_draw_alike_until_they_part():
    def drawn(rank):
        ranks = Ranks(rank, 2)
        ranks.begin(5, 9)
        common = torch.rand(4)
        ranks.part_ways()
        return common, torch.rand(4)

    (a, b), (c, d) = drawn(0), drawn(1)
    assert torch.equal(a, c) and not torch.equal(b, d)


def test_threads_and_devices_are_divided(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert Ranks(1, 4, 1, 4).threads(0) == 3 and Ranks(1, 4, 1, 4).threads(2) == 2 and ALONE.threads(0) == 0
    assert Ranks(1, 4, 1, 4).device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="names one device, but torchrun started 4"):
        Ranks(1, 4, 1, 4).device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="4 processes on this host, but PyTorch sees 2 CUDA devices; give --nproc_per_node=2"):
        Ranks(1, 4, 1, 4).device("auto")


def test_a_restart_goes_on_in_the_folder_that_has_a_name(tmp_path):
    words = ["name=n", f"trainer.outputs_dir={tmp_path}", "trainer.trial_name=t", "dataset.name=dtu"]
    (tmp_path / "n/t/ckpt").mkdir(parents=True)
    assert left_behind(None, words) is None  # no checkpoint yet
    (tmp_path / "n/t/ckpt/last.pt").write_bytes(b"x")
    assert left_behind(None, words) == str(tmp_path / "n/t")
    assert left_behind(None, [w for w in words if "trial" not in w]) is None


def test_what_an_earlier_start_left_in_the_store_is_not_taken_for_this_one():
    """Regression: after a restart a process found the address of one that was gone, and waited for it for ever."""
    store = dist.HashStore()
    names = []
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(parallel._meet, store, rank, 3) for rank in (2, 0, 1)]
            names.append({w.result(timeout=20) for w in waiting})
    assert len(names[0]) == len(names[1]) == 1 and names[0] != names[1]


def test_what_one_process_does_is_refused_to_several(monkeypatch):
    parallel.refuse("--photos")
    monkeypatch.setattr(parallel, "start", lambda: Ranks(0, 2))
    with pytest.raises(UserError, match="--photos is the work of one process"):
        parallel.refuse("--photos")


class _Copied(Ranks):
    """A process whose weights are those of the first already, as after a checkpoint was loaded."""

    def sums(self, numbers):
        return numbers

    def from_first(self, numbers):
        return numbers

    def copy_first(self, tensors):
        return


def test_an_error_of_a_checkpoint_is_added_up_once(tiny_scene, tmp_path):
    """Regression: each process took the errors of the first that were not yet added up for its own, so they counted twice."""
    left = []
    for rank in (0, 1):
        t = make(tiny_scene, tmp_path, ranks=_Copied(rank, 2), name=f"run{rank}")
        t.clock.step = 21
        t.system.model.distractors.pending.fill_(3.0)
        t.together.align()
        left.append(float(t.system.model.distractors.pending.mean()))
    assert left == [3.0, 0.0]


# ------------------------------------------------------------------ two processes


@pytest.fixture(scope="module")
def two(tiny_scene, tmp_path_factory):
    """The folder in which two processes left their first step, and a run with troubles."""
    out = tmp_path_factory.mktemp("two")
    codes, outputs = finish(spawn("gradients+troubles", tiny_scene, out))
    assert codes == [0, 0], "\n".join(outputs)
    return out


def difference(a: dict, b: dict) -> float:
    """The largest over all tensors, relative to the largest entry of each."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max().clamp(min=1e-6)) for k in a)


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_with_all_rays(two, tiny_scene, tmp_path, monkeypatch):
    monkeypatch.setattr(process_data.rays, "N_POINTS", 2 * process_data.rays.N_POINTS)
    t = make(tiny_scene, tmp_path, "trainer.n_rays=96", "loss.eikonal_points=256")
    real = t.together.begin

    def begin():
        real()
        torch.manual_seed(mixed_seed(t.seed + COMMON, 0))

    t.together.begin = begin
    one = first_step(t)
    first, second, plain = (torch.load(two / name) for name in ("first0.pt", "first1.pt", "plain0.pt"))
    assert torch.equal(torch.cat([first["rgb"], second["rgb"]]), one["rgb"])
    assert torch.equal(torch.cat([first["points"], second["points"]]), one["points"])
    assert torch.equal(first["occs"], one["occs"]) and torch.equal(second["occs"], one["occs"])
    assert all(torch.equal(first["grads"][k], second["grads"][k]) for k in first["grads"])  # to the last bit
    assert difference(first["grads"], one["grads"]) < 1e-5
    assert difference(plain["grads"], one["grads"]) > 1e-3  # a mean over the processes, without the counts


@pytest.mark.slow
def test_decisions_are_those_of_all(two):
    """Step 4 is not finite in one process, 6 and 8 run out of memory in one, 10 is stopped in one; before step 7 one drifts away."""
    first, second = (torch.load(two / f"trouble{rank}.pt") for rank in (0, 1))
    assert first["rows"] == second["rows"] and not first["whole"] and not second["whole"]
    steps, rays, skipped, progress, _ = zip(*first["rows"])
    assert steps == tuple(range(1, 12)) and first["signal"] == second["signal"] == 15
    assert skipped == (0,) * 4 + (1,) * 7
    assert rays[6] == rays[5] // 2 and rays[8] == rays[7] // 2
    assert len(set(rays)) > 4  # follows the mean number of samples
    assert list(progress) == sorted(progress) and progress[-1] < 0.2
    own = [state.pop("distractors.pending") for state in (first["state"], second["state"])]  # errors of each one's rays, not yet added up
    assert same(first["state"], second["state"]) and not torch.equal(*own)
    assert load_checkpoint(two / "trouble0")["step"] == 11 and not (two / "trouble1/ckpt").exists()


def words(scene, out):
    more = [f"dataset.root_dir={scene}", f"trainer.outputs_dir={out}", "name=n", "trainer.trial_name=t", f"trainer.max_steps={STEPS}"]
    return ["--config", "confs/dtu-wmask.yaml", "--train", *TINY, *more, "trainer.finish=false", "model.occupancy.every=7"]


@pytest.fixture(scope="module")
def undisturbed(tiny_scene, tmp_path_factory):
    """The weights of two processes that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed")
    codes, outputs = finish(spawn("command", 0, *words(tiny_scene, out)))
    assert codes == [0, 0], "\n".join(outputs)
    assert f"trained {STEPS} steps" in outputs[0] and "steps" not in outputs[1] and "run folder" not in outputs[1]
    return load_checkpoint(out / "n/t")["model"]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_can_be_gone_on_with(undisturbed, tiny_scene, tmp_path):
    processes = spawn("command", KILLED, *words(tiny_scene, tmp_path))
    processes[1].wait(timeout=200)
    began = time.time()
    codes, outputs = finish(processes, timeout=30)
    assert codes == [2, -9] and time.time() - began < 30
    last = outputs[0].strip().splitlines()[-1]
    assert re.match(r"error: one of the 2 processes of this run has ended .*; step 21 is saved, go on with: torchrun ", last), outputs[0]
    assert load_checkpoint(tmp_path / "n/t")["step"] == KILLED
    codes, outputs = finish(spawn("command", 0, "--train", "--resume", tmp_path / "n/t"))
    assert codes == [0, 0] and f"resuming at step {KILLED}" in outputs[0], "\n".join(outputs)
    assert same(load_checkpoint(tmp_path / "n/t")["model"], undisturbed)


@pytest.mark.slow
def test_a_killed_run_loses_the_errors_of_one_process_since_they_were_last_added_up(tiny_scene, tmp_path):
    """Of the 16 steps between two refreshes (`systems.base.REFRESH`), and no error counts twice but that of the step in hand."""
    fixed = ["model.distractors=true", "trainer.n_rays=48", "trainer.max_rays=48", "trainer.target_samples=100000", "trainer.max_steps=34"]
    _, outputs = finish(spawn("command", KILLED, *words(tiny_scene, tmp_path), *fixed))
    assert re.findall(r"errors of (\d+) rays", outputs[0]) == ["0", str(2 * 48 * REFRESH)], outputs[0]
    codes, outputs = finish(spawn("command", 0, "--train", "--resume", tmp_path / "n/t"))
    assert codes == [0, 0], "\n".join(outputs)
    (found,) = (int(n) for n in re.findall(r"errors of (\d+) rays", outputs[0]))
    lost = 2 * 48 * REFRESH - found
    assert 0 <= lost <= 48 * (KILLED % REFRESH)


@pytest.mark.slow
def test_torchrun_starts_a_run_again_from_its_checkpoint(undisturbed, tiny_scene, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    arguments = [*torchrun, "-m", "tests.systems.ranks", "command", str(KILLED), *words(tiny_scene, tmp_path)]
    done = subprocess.run(
        arguments, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"}, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"step {KILLED} is saved" in done.stderr + done.stdout and f"resuming at step {KILLED}" in done.stderr + done.stdout
    assert same(load_checkpoint(tmp_path / "n/t")["model"], undisturbed)
