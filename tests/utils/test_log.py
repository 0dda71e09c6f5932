"""The run folder and the log: nothing is written outside, nothing steers the terminal."""

import logging
import os

import pytest

from utils.errors import LONGEST, UserError, one_line
from utils.log import Printable, RunFolder, printable


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
