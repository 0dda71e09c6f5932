"""Signals that end the program: raised once, told with a way to go on, never from a terminal that is gone."""

import os
import pty
import signal
import sys
import time
from pathlib import Path

import pytest

from confs.load import load_config
from systems.run import run_folder
from utils.stop import SIGNALS, Stopped, handled, stoppable, told


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_raised_once_and_the_handlers_are_put_back(number):
    def own(*_):
        raise AssertionError("the handler of before")

    before = signal.signal(number, own)  # not ignored, as that of a job in the background may be
    try:
        with stoppable():
            with pytest.raises(KeyboardInterrupt) as caught:
                os.kill(os.getpid(), number)
            assert caught.type is Stopped and caught.value.number == number
            assert signal.getsignal(number) == signal.SIG_DFL, "a second one ends the program at once"
        assert signal.getsignal(number) == own
    finally:
        signal.signal(number, before)


def test_what_is_said(caplog):
    assert told(Stopped(signal.SIGTERM), "go on") == 143 and told(KeyboardInterrupt()) == 130
    assert caplog.messages == ["stopped by SIGTERM; go on", "stopped by SIGINT; start again with the same command"]


def test_a_signal_that_is_ignored_stays_so():
    """nohup."""
    before, got = signal.signal(signal.SIGHUP, signal.SIG_IGN), []
    try:
        with handled(got.append):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert got == [signal.SIGTERM]


WITHOUT_TERMINAL = """
import signal, sys
from confs.load import load_config
from systems.run import run_folder
from utils.stop import handled
got = []
with handled(got.append):
    print("ready", flush=True)
    while not got:
        signal.pause()
    print("a line", file=sys.stderr, flush=True)
    print("a line", flush=True)
open(sys.argv[1], "w").write(signal.Signals(got[0]).name)
"""


@pytest.mark.timeout(60)
def test_after_the_terminal_was_closed_a_run_goes_on_to_save(tmp_path):
    """A write to a terminal that is gone raises OSError, in the midst of the progress bar or of a line of the log."""
    pid, master = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a suite started by nohup ignores it
        os.chdir(Path(__file__).parents[2])
        os.execv(sys.executable, [sys.executable, "-c", WITHOUT_TERMINAL, str(tmp_path / "saved")])
    assert b"ready" in os.read(master, 100)
    os.close(master)  # the kernel sends SIGHUP
    os.waitpid(pid, 0)
    assert (tmp_path / "saved").read_text() == "SIGHUP"


def test_a_run_never_takes_a_folder_that_is_there(tmp_path, monkeypatch):
    """A clock that was set back, as in autumn, gives a time of day twice."""
    monkeypatch.setattr(time, "strftime", lambda *_: "20261025-023000")
    cfg = load_config(None, [f"trainer.outputs_dir={tmp_path}", "name=n", "dataset.root_dir=x", "dataset.name=dtu"])
    runs = [run_folder(cfg, None) for _ in range(3)]
    for run in runs:
        run.close()
    assert [run.root.name for run in runs] == ["20261025-023000", "20261025-023000-2", "20261025-023000-3"]
