import csv
import io
import json

import pytest

import run
from systems.eval_table import as_csv, read_run
from utils.errors import UserError


def write_run(folder, seed=1, scene="inputs/cat", lr=0.01, minutes=4.0, test=None, mesh=None, **more):
    folder.mkdir(parents=True)
    config = {
        "name": folder.parent.name,
        "seed": seed,
        "dataset": {"root_dir": scene},
        "model": {"name": "neus"},
        "optim": {"lr": lr},
    } | more
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    lines = [{"step": 50, "seconds": 10.0}, {"step": 4000, "seconds": 60 * minutes}, {"step": 4010, "val/psnr": 20.0}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 40')
    for name, figures in (("test", test), ("mesh", mesh)):
        if figures is not None:
            (folder / name).mkdir()
            (folder / name / "metrics.json").write_text(json.dumps(figures))
    return folder


@pytest.fixture
def runs(tmp_path):
    held = {"held_out": True, "scale": 1.0}
    write_run(tmp_path / "a/1", 1, test={"psnr": 30.0, "ssim": 0.9, "psnr_masked": None, **held}, mesh={"chamfer": 0.002})
    write_run(tmp_path / "a/2", 2, test={"psnr": 32.0, "ssim": 0.9, **held}, minutes=6.0)
    write_run(tmp_path / "b/1", 1, lr=0.02, test={"psnr": 29.0, "held_out": False, "scale": 0.5})
    write_run(tmp_path / "c/1", None, scene="/data/dog")
    (tmp_path / "d/broken").mkdir(parents=True)
    (tmp_path / "d/broken/config.yaml").write_text("a: [")
    write_run(tmp_path / "d/half").joinpath("test").mkdir()
    (tmp_path / "d/half/test/metrics.json").write_text("{")
    return tmp_path


def test_table_by_hand(runs, capsys):
    assert run.main(["--eval-table", f"{runs}/*/*", str(runs / "none"), "--eval-out", str(runs / "out")]) == 0
    text = "".join(capsys.readouterr())
    left_out = [line for line in text.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 3 and "d/broken/config.yaml" in text and "d/half/test/metrics.json" in text and "none: no config.yaml" in text
    table = (runs / "out/table.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0] == ["scene", "method", "options", "runs", "seed", "minutes", "steps", "psnr", "ssim", "chamfer", "remark"]
    assert cells[2] == [
        "cat",
        "neus",
        "optim.lr=0.01",
        "2",
        "1 2",
        "5.0 ± 1.4",
        "4000 ± 0",
        "31.00 ± 1.41",
        "0.9000 ± 0.0000",
        "0.00200",
        "",
    ]
    assert cells[3] == ["cat", "neus", "optim.lr=0.02", "1", "1", "4.0", "4000", "29.00", "", "", "pictures at 0.50, training views"]
    assert cells[4] == ["dog", "neus", "", "1", "", "4.0", "4000", "", "", "", ""] and len(cells) == 5
    rows = list(csv.DictReader(io.StringIO((runs / "out/table.csv").read_text())))
    assert float(rows[0]["psnr"]) == 31 and float(rows[0]["psnr_spread"]) == pytest.approx(2**0.5) and rows[0]["lpips"] == ""
    assert rows[0]["folders"] == f"{runs / 'a/1'} {runs / 'a/2'}"


def test_where_a_run_was_written_makes_no_group_of_its_own(tmp_path):
    one = read_run(write_run(tmp_path / "a/1", trainer={"threads": 1, "outputs_dir": "x", "max_minutes": 3}))
    two = read_run(write_run(tmp_path / "a/2", trainer={"threads": 2, "outputs_dir": "y", "max_minutes": 3}))
    assert one.options == two.options and one.options["trainer.max_minutes"] == 3


def test_without_a_folder_the_csv_is_printed(runs, capsys):
    assert run.main(["--eval-table", str(runs / "a/1")]) == 0
    text = "".join(capsys.readouterr())
    assert "| cat | neus |" in text and "\ncat,neus,," in text
    assert as_csv([]).startswith("scene,method,options,runs,seed,minutes,minutes_spread")


def test_nothing_to_show(tmp_path, capsys):
    assert run.main(["--eval-table", str(tmp_path / "x")]) == 2
    assert "no run folder among the 1 given" in "".join(capsys.readouterr())
    (tmp_path / "config.yaml").write_text("name: x")
    with pytest.raises(UserError, match="not a run's config"):
        read_run(tmp_path)


@pytest.mark.parametrize("figure", ["9" * 400, "1e999", "true", '"x"', "null", "[1]"])
def test_a_figure_that_is_no_number_is_left_blank(figure, tmp_path):
    """Regression: a whole number of 400 digits was a traceback."""
    write_run(tmp_path / "a/1", test={})
    (tmp_path / "a/1/test/metrics.json").write_text(f'{{"psnr": {figure}, "ssim": 0.5}}')
    found = read_run(tmp_path / "a/1").figures
    assert "psnr" not in found and found["ssim"] == 0.5


def test_a_log_line_of_nothing_but_brackets_is_passed_over(tmp_path):
    """Regression: a traceback."""
    with open(write_run(tmp_path / "a/1") / "metrics.jsonl", "a") as file:
        file.write("\n" + "[" * 5000)
    assert read_run(tmp_path / "a/1").figures["minutes"] == 4.0


def test_names_and_files_that_cannot_be_opened_are_left_out(tmp_path, capsys):
    """Regression: a long name was a traceback, and a device was read for ever."""
    write_run(tmp_path / "a/1")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/config.yaml").symlink_to("/dev/zero")
    (write_run(tmp_path / "c/1") / "test").mkdir()
    (tmp_path / "c/1/test/metrics.json").symlink_to("/dev/zero")
    (write_run(tmp_path / "d/1") / "metrics.jsonl").unlink()
    (tmp_path / "d/1/metrics.jsonl").symlink_to("/dev/zero")
    assert (
        run.main(
            ["--eval-table", str(tmp_path / "a/1"), "x" * 5000, "a\0b", str(tmp_path / "b"), str(tmp_path / "c/1"), str(tmp_path / "d/1")]
        )
        == 0
    )
    assert "".join(capsys.readouterr()).count("left out: ") == 4
