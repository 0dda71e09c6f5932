"""A run of stages (confs/stages.py): the shape, the material and light on its mesh, a relit turntable; one folder, one time for all.

RUN/shape and RUN/material are run folders as any other. RUN/stages.json holds the words that started the run and the seconds that each
finished stage took: `--train --resume RUN` passes these over, and goes on from the checkpoint of the stage that was stopped.
"""

import json
import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from confs.load import load_config
from confs.stages import Staged, read_stages
from systems.budget import FLOOR, VALIDATION
from systems.parallel import refuse
from systems.run import execute, prepare, preset_words, relit, run_folder
from utils import checkpoint
from utils.checkpoint import STAGES_FILE
from utils.errors import UserError
from utils.files import read_facts
from utils.log import RunFolder
from utils.stop import told

log = logging.getLogger("neus")
LEAST = 0.1  # of the minutes, that the material is trained for at least, however long the shape took
AFTER = 90.0  # seconds that test, export and turntable take at least; of short runs a third


@dataclass
class Facts:
    """stages.json."""

    config: str  # the YAML file
    words: list[str]  # overrides of all commands so far, the last wins
    seconds: dict[str, float] = field(default_factory=dict)  # that each finished stage took

    @classmethod
    def read(cls, path: Path) -> "Facts":
        """Raises UserError."""
        known = read_facts(path)
        try:
            found = cls(str(known["config"]), [str(word) for word in known["words"]], {k: float(v) for k, v in known["seconds"].items()})
            good = all(0 <= value < 1e9 for value in found.seconds.values())
        except (KeyError, TypeError, ValueError, AttributeError):
            good = False
        if not good or any("${oc." in word for word in found.words):  # words of a stranger do not read the environment
            raise UserError(f"{path} is damaged; go on with a stage by itself: --train --resume {path.parent / 'shape'}")
        return found


def _expanded(word: str) -> str:
    """An override with the environment's values in it: a run that goes on does not ask for them again."""
    try:
        return re.sub(r"\$\{oc\.env:[^{}]*\}", lambda part: str(OmegaConf.create({"value": part[0]}).value), word)
    except OmegaConfBaseException as error:
        raise UserError(f"{word.partition('=')[0]}: {str(error).splitlines()[0]}") from None


def staged(config: str | None, resume: str | None, overrides: Sequence[str] = ()) -> bool:
    """Whether `--train` with this config, or in this folder, is a run of stages. Raises UserError where it is and both are given."""
    again = resume is not None and (Path(resume) / STAGES_FILE).is_file()
    new = config is not None and read_stages(config, [word for word in overrides if word.startswith("stages.")]) is not None
    if resume is not None and (new or (again and config)):
        raise UserError("a run of stages goes on with --train --resume and its folder, without --config")
    return again or new


def run(
    config: str | None, resume: str | None, overrides: list[str], preset: str | None = None, film: bool = True, view: int | None = None
) -> int:
    """Train what is left of a run of stages; returns the exit code (128 + signal when one stopped it). Raises UserError."""
    refuse("a config with stages")
    known = Facts.read(Path(resume) / STAGES_FILE) if resume else Facts(str(Path(str(config)).resolve()), [])
    if preset:
        overrides = [*preset_words(preset, load_config(known.config, [*known.words, *overrides])), *overrides]
    known.words += [_expanded(word) for word in overrides]
    plan = read_stages(known.config, known.words)
    if plan is None:
        raise UserError(f"{known.config} has no stages any more; go on with a stage by itself: --train --resume {resume}/shape")
    if resume:
        folder = RunFolder(Path(resume))
    else:
        cfg = prepare(str(plan.paths["shape"]), None, plan.words["shape"]).cfg
        folder = run_folder(cfg, None)
        known.words += [f"seed={cfg.seed}", f"dataset.name={cfg.dataset.name}"]  # the same for all, and when the run goes on
        plan = read_stages(known.config, known.words)
        assert plan is not None
    whole = Whole(folder, known, plan, set(overrides) if resume else set(), film, view)
    try:
        return whole.train()
    except KeyboardInterrupt as stop:
        return told(stop, whole.onward)
    finally:
        folder.close()


class Whole:
    """A run of stages in work."""

    def __init__(self, folder: RunFolder, known: Facts, plan: Staged, new: set[str], film: bool, view: int | None):
        """new: overrides that the run was not started with; film: whether the turntable is wanted; view: port of a page that shows it."""
        self.folder, self.root, self.known, self.plan, self.new, self.film, self.view = folder, folder.root, known, plan, new, film, view
        self.seconds = math.inf if plan.minutes is None else 60 * plan.minutes
        self.onward = f"go on with: python run.py --train --resume {self.root}{'' if film else ' --no-video'}"

    @property
    def spent(self) -> float:
        """Seconds that the finished stages took."""
        return sum(self.known.seconds.values())

    def train(self) -> int:
        """The three stages, each where it is not done; returns the exit code."""
        self.record()
        o, shape, material = self.plan.options, self.root / "shape", self.root / "material"
        code = (
            self.stage("shape", "1/3 shape", lambda: o.shape_share * self.seconds)
            or self.stage("material", "2/3 material and light", self.left_for_material, f"model.mesh={shape}")
            or self.turntable("3/3 relit turntable")
        )
        if not code:
            files = [shape / "mesh/mesh.ply", material / "material/mesh.glb", material / "material/light.hdr"]
            files += sorted(path for kind in ("mp4", "gif") for path in material.glob(f"relight/*.{kind}"))
            took = f"{self.spent / 60:.1f}{'' if math.isinf(self.seconds) else f' of {self.plan.minutes:g}'} minutes"
            log.info("all stages done in %s -> %s", took, ", ".join(str(path) for path in files if path.is_file()))
        return code

    def stage(self, name: str, title: str, allowed: Callable[[], float], *more: str) -> int:
        """Train, test and mesh a stage, with these further overrides; allowed: seconds of its training, asked where they are decided."""
        folder, began = self.root / name, time.perf_counter()
        if self.done(name, title):
            return 0
        words, begun = self.plan.words[name], (folder / "ckpt/last.pt").is_file()
        if begun:  # its checkpoint knows what the run was started with
            words = self.added(name)
        if not begun or any(word.startswith(("trainer.max_minutes=", "stages.")) for word in self.new):
            seconds = allowed()
            words = [*words, f"trainer.max_minutes={'null' if math.isinf(seconds) else round(seconds / 60, 4)}"]
        config, resume = (None, str(folder)) if begun else (str(self.plan.paths[name]), None)
        job = prepare(config, resume, [*words, *more])
        t = job.cfg.trainer
        limit = f"at most {t.max_steps} steps" if t.max_minutes is None else f"{t.max_minutes:.1f} of {self.plan.minutes or 0:g} minutes"
        log.info("%s: %s of training -> %s", title, limit, folder)
        before = checkpoint.seconds_trained(job.state, folder) if job.state else 0.0
        job = replace(job, folder=folder, onward=self.onward)
        code = execute(job, train=True, test=False, mesh=name == "shape", film=False, view=self.view)
        return code or self.finished(name, before + time.perf_counter() - began)

    def left_for_material(self) -> float:
        """Seconds of training that the shape leaves, less those of pictures meanwhile and of what follows."""
        if math.isinf(self.seconds):
            return math.inf
        after = max(self.plan.options.finish_share * self.seconds, min(AFTER, self.seconds / 3))
        left, least = (self.seconds - self.spent - after) / (1 + VALIDATION), LEAST * self.seconds
        if left < least:
            message = "the shape took %.1f of %g minutes: the material has %.1f, and the run takes longer than it should"
            log.warning(message, self.spent / 60, self.seconds / 60, least / 60)
        return max(left, least)

    def turntable(self, title: str) -> int:
        """Pictures under the recovered light and another, in the time that is left."""
        words = self.plan.words["material"]
        if not self.film or not load_config(self.plan.paths["material"], words).trainer.finish:
            log.info("%s: none (%s)", title, "trainer.finish=false" if self.film else "--no-video")
            return 0
        if self.done("turntable", title):
            return 0
        began, share = time.perf_counter(), self.plan.options.finish_share * self.spent
        left = max(FLOOR, share if math.isinf(self.seconds) else self.seconds - self.spent)
        log.info("%s: in about %.0f s -> %s", title, left, self.root / "material/relight")
        code = relit(str(self.root / "material"), [word for word in words if word.startswith("relight.")], seconds=left)
        return code or self.finished("turntable", time.perf_counter() - began)

    def added(self, name: str) -> list[str]:
        """The overrides of a stage that the run was not started with."""
        return [word for word in self.plan.words.get(name, []) if self.new & {word, f"{name}.{word}"}]

    def done(self, name: str, title: str) -> bool:
        """Whether a stage was finished before, which is said."""
        if name in self.known.seconds:
            log.info("%s: done before, in %.1f minutes", title, self.known.seconds[name] / 60)
            if self.added(name):
                log.warning("%s is finished, it does not know of %s", name, ", ".join(self.added(name)))
        return name in self.known.seconds

    def finished(self, name: str, seconds: float) -> int:
        """Record that a stage is done; returns the exit code 0."""
        self.known.seconds[name] = round(seconds, 2)
        self.record()
        return 0

    def record(self) -> None:
        self.folder.record(STAGES_FILE, json.dumps(vars(self.known), indent=1).encode())
