"""Further attempts at photographs left out: which are made, which reconstruction is kept, and what the report says."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from process_data import solve
from process_data.photos import Photo
from process_data.sfm import Report, advice
from process_data.solve import Attempt, Solver, improve


class Model:
    """What is read of a pycolmap.Reconstruction."""

    def __init__(self, names: str, error: float = 0.5):
        self.names, self.error = names, error

    def reg_image_ids(self):
        return range(len(self.names))

    def num_reg_images(self):
        return len(self.names)

    def image(self, i):
        return SimpleNamespace(name=self.names[i])

    def compute_mean_reprojection_error(self):
        return self.error


@pytest.fixture
def attempts(monkeypatch):
    """results[name]: what the attempt gives, models or an exception; started: the attempts made and what each began with."""
    results, started = {}, []

    def fake(name):
        def run(solver, best):
            started.append((name, best.model))
            found = results.get(name, [])
            if isinstance(found, Exception):
                raise found
            return found

        return run

    for name, function in (("lower thresholds", "_lower"), ("guided matching", "_guided"), ("global", "_global")):
        monkeypatch.setattr(solve, function, fake(name))
    return results, started


def solver(names: str = "abcdef", tmp_path: Path = Path()) -> Solver:
    photos = [Photo(Path(name), name, (), 1, (100, 100)) for name in names]
    return Solver(SimpleNamespace(global_mapping=None), photos, tmp_path, "exhaustive")


def test_nothing_more_is_tried_when_all_are_registered(attempts):
    best, tried = improve(solver(), Attempt("incremental", Model("abcdef")))
    assert best.name == "incremental" and len(tried) == 1 and not attempts[1]


def test_attempts_go_on_until_all_are_registered(attempts, caplog):
    results, started = attempts
    first = Model("abcd")
    results |= {
        "lower thresholds": [Model("ab"), Model("abcde", 0.9)],
        "guided matching": [Model("abcdef", 1.2)],
        "global": [Model("abcdef")],
    }
    with caplog.at_level(logging.INFO):
        best, tried = improve(solver(), Attempt("incremental", first, 1))
    assert best.name == "guided matching" and [name for name, _ in started] == ["lower thresholds", "guided matching"]
    assert started[0][1] is first and started[1][1].names == "abcde"  # each adds to the best so far
    assert [words.split(",")[0] for words in tried] == [
        "incremental: 4 photographs", "lower thresholds: 5 photographs", "guided matching: 6 photographs"
    ]  # fmt: skip
    assert "guided matching: 6 photographs, 1.20 px" in caplog.text


def test_most_photographs_then_the_smaller_error_win(attempts):
    results, _ = attempts
    results |= {"lower thresholds": [Model("abcd", 0.4)], "guided matching": [Model("abc", 0.1)], "global": [Model("abcd", 0.6)]}
    assert improve(solver(), Attempt("incremental", Model("abcd", 0.5)))[0].name == "lower thresholds"
    results["global"] = [Model("abcde", 2.0)]
    assert improve(solver(), Attempt("incremental", Model("abcd", 0.5)))[0].name == "global"
    results |= {"lower thresholds": [], "global": []}
    assert improve(solver(), Attempt("incremental", Model("abcd", 0.5)))[0].name == "incremental"


def test_an_attempt_that_fails_changes_nothing(attempts):
    results, _ = attempts
    results |= {name: RuntimeError("[file.cc:7] Check failed\nno\u0020pairs") for name in ("lower thresholds", "guided matching")}
    results["global"] = ValueError("")
    best, tried = improve(solver(), Attempt("incremental", Model("abcd")))
    assert best.name == "incremental" and tried[1:] == [
        "lower thresholds: failed (no pairs)", "guided matching: failed (no pairs)", "global: failed (?)"
    ]  # fmt: skip


def test_without_global_mapping_it_is_not_tried(attempts):
    _, started = attempts
    plain = solver()
    plain.pycolmap = SimpleNamespace()
    improve(plain, Attempt("incremental"))
    assert [name for name, _ in started] == ["lower thresholds", "guided matching"]


def test_groups_hold_photographs_of_their_own():
    whole, pair, other = Model("abcdef"), Model("ab"), Model("fgh")
    result = solver("abcdefgh").attempt("incremental", lambda: [pair, whole], "cameras")
    assert result.model is whole and result.groups == 1  # the pair is part of the whole
    assert solver("abcdefgh").attempt("incremental", lambda: [other, whole], "cameras").groups == 2


def test_the_report_names_the_longest_steps_and_gives_advice():
    seconds = {"copies": 1.0, "features": 20.0, "matching": 9.0, "cameras": 5.0}
    text = str(Report(8, 7, 0.7, 900, 1, {"a.jpg": "no matches with other photographs"}, 4.25, seconds, ["incremental: 6", "global: 7"]))
    assert "longest steps: features 20 s, matching 9 s, cameras 5 s" in text and "copies" not in text
    assert "900 points seen in 4.2 photographs each" in text and "tried: incremental: 6; global: 7" in text
    assert text.count("advice:") == 1 and "add photographs between" in text
    assert "advice" not in str(Report(8, 8, 0.7, 900, 1, {}))
    assert "left out: a?b" in str(Report(8, 7, 0.7, 900, 1, {"a\nb": "the same file as c"})) and advice({"a": "the same file as c"}) is None
    many = {"a": "blurred: its sharpness is 0.3", "b": "no matches with others", "c": "blurred: its sharpness is 0.2"}
    assert "blurred photographs again" in (advice(many) or "")


def test_the_size_of_features_follows_the_photographs(tmp_path):
    """Small photographs are enlarged, large ones reduced; many photographs get fewer features each."""
    calls = []

    class Fake:
        ImageReaderOptions = FeatureMatchingOptions = SimpleNamespace
        CameraMode, Device = SimpleNamespace(SINGLE=0), SimpleNamespace(cpu=0)

        @staticmethod
        def FeatureExtractionOptions():
            return SimpleNamespace(sift=SimpleNamespace())

        @staticmethod
        def extract_features(database, folder, names, mode, reader, options, device):
            calls.append(
                (len(names), options.sift.first_octave, options.sift.max_num_features, options.max_image_size, reader.camera_model)
            )

        class Database:
            @staticmethod
            def open(path):
                return Fake.Database()

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def read_image_with_name(self, name):
                return SimpleNamespace(camera_id=1)

    def photos(n, size):
        return [Photo(Path(), f"{size}-{i}", size, 1, size) for i in range(n)]

    solve.extract(Solver(Fake, photos(3, (540, 960)) + photos(12, (4000, 3000)), tmp_path, "exhaustive"), None)
    assert calls == [(3, -1, 8192, 1600, "SIMPLE_RADIAL"), (12, 0, 8192, 1600, "OPENCV")]
    calls.clear()
    solve.extract(Solver(Fake, photos(120, (640, 480)), tmp_path, "exhaustive"), None)
    assert sum(call[0] for call in calls) == 120 and {call[1:4] for call in calls} == {(-1, 4096, 1600)}


def test_further_attempts_add_to_a_real_reconstruction(tmp_path):
    """Synthetic features; a photograph is taken out of the reconstruction and comes back, by each of the attempts."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, 6, 150
    (tmp_path / "images").mkdir()
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        pycolmap.synthesize_dataset(options, database)
        names = [image.name for image in database.read_all_images()]
    work = Solver(pycolmap, [Photo(Path(), name, (), 1, (1024, 768)) for name in names], tmp_path, "exhaustive", threads=1)
    whole = work.attempt("incremental", lambda: solve.incremental(work), "cameras")
    assert whole.names == set(names) and whole.groups == 1 and whole.error < 1 and work.seconds["cameras"] > 0
    part = Attempt("part", whole.model)
    part.model.deregister_frame(part.model.reg_frame_ids()[-1])
    assert len(part.names) == 5
    best, tried = improve(work, part)
    assert best.name == "lower thresholds" and best.names == set(names) and len(tried) == 2
    assert {image.name for image in solve._global(work, part)[0].images.values()} <= set(names)
    assert solve._global(work, part)[0].num_reg_images() == 6
