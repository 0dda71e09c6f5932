"""The run folder and the log: what is logged can be read again, nothing is written outside, nothing steers the terminal; a full disk, and a
folder that is removed meanwhile, do not end in a traceback."""

import json
import logging
import os
import resource
import shutil

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.errors import LONGEST, UserError, one_line
from utils.log import Printable, RunFolder, log, printable


@pytest.mark.parametrize("name", ["log.txt", "test", "images/a.png", "ckpt"])
def test_a_link_out_of_the_run_folder_is_refused(name, tmp_path):
    """Regression: TensorBoard and log.txt wrote through links in a run folder of another's."""
    (tmp_path / "other").mkdir()
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    os.symlink(tmp_path / "other", path)
    with pytest.raises(UserError, match="leads out of the run folder"):
        RunFolder(tmp_path / "run")
    assert not list((tmp_path / "other").iterdir())


def test_links_that_stay_and_a_run_folder_that_is_a_link(tmp_path):
    (tmp_path / "real/images").mkdir(parents=True)
    os.symlink("images", tmp_path / "real/pictures")
    os.symlink("real", tmp_path / "run")
    RunFolder(tmp_path / "run").close()
    assert (tmp_path / "real/log.txt").exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink(path.name, path), lambda path: os.symlink("nowhere", path)])
def test_a_pipe_and_a_link_to_nothing_are_refused(make, tmp_path):
    make(tmp_path / "log.txt")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        RunFolder(tmp_path)


def test_names_are_printable():
    assert printable("a\x1b[2Jb\udcff\r\nü\t✓") == "a\\x1b[2Jb\\udcff\\x0d\nü\t✓"
    record = logging.LogRecord("neus", logging.INFO, "", 0, "%s is missing", ("\x07",), None)
    assert Printable("%(message)s").format(record) == "\\x07 is missing"


def test_an_error_is_one_line_of_bounded_length():
    assert one_line("a\nb  c") == "a b c"
    line = one_line("begin " + "x" * 10**6 + " end")
    assert len(line) <= LONGEST and line.startswith("begin xxx") and line.endswith("xxx end")


@pytest.fixture
def run(tmp_path):
    log.setLevel(logging.INFO)
    run = RunFolder(tmp_path / "run")
    yield run
    run.close()


def test_tensorboard_reads_what_is_written(run):
    for step in range(3):
        run.scalars(step, {"loss/rgb": 0.5 * step, "psnr": 20.0})
    run.image("val", np.full((4, 6, 3), 7, np.uint8), 2)
    found = EventAccumulator(str(run.root / "tb"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss/rgb")] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    picture = found.Images("val")[0]
    assert (picture.step, picture.width, picture.height) == (2, 6, 4)


def test_a_folder_that_is_removed_is_made_again(run, caplog):
    run.record_source("a: 1\n")
    run.record("scene.json", b"{}")
    run.scalars(1, {"loss": 1.0})
    shutil.rmtree(run.root)
    for step in (2, 3):
        run.scalars(step, {"loss": 1.0})
    log.info("a line")
    assert [json.loads(line)["step"] for line in (run.root / "metrics.jsonl").read_text().splitlines()] == [2, 3]
    assert (run.root / "config.yaml").read_text() == "a: 1\n" and (run.root / "scene.json").read_bytes() == b"{}"
    assert (run.root / "log.txt").read_text().endswith("INFO a line\n") and list((run.root / "tb").iterdir())
    assert caplog.text.count("was removed; the run goes on") == 1


def test_a_full_disk_is_one_sentence(run, capfd):
    """Regression: tracebacks of the logging module, and of TensorBoard's thread."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    run.scalars(0, {"loss": 1.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))
    try:
        with pytest.raises(UserError, match="metrics.jsonl cannot be written .File too large.; free some space"):
            for step in range(1, 100):
                run.scalars(step, {"loss": 1.0})
        log.info("a long line " * 20)
        run.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Traceback" not in capfd.readouterr().err
    rows = [json.loads(line) for line in (run.root / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows))) and rows
