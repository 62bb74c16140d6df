"""A score job that is killed: what it had measured is not measured again, and the scores are those of an undisturbed one.

Trials of a supernet, cells of a sample and cells of a study are one engine; what is tested of one in depth holds for all.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from zlib import crc32

import pytest
import torch
from helpers import ROOT
from helpers.engine import KAPPA, NAS, ON_A_BATCH, REGIONS, cells_of, prepared

from tenas.cli import main
from tenas.files import sha256, write_csv, write_json
from tenas.provenance import sealed
from tenas.scoring.checkpoint import Checkpoint, Result, origin_of
from tenas.scoring.subjects import Measurement
from tenas.settings import search_settings, study_settings

PARTIAL = ".1.partial"
# 13 trials in a shard, 8 measurements each: a second of work, in pieces of some milliseconds.
MEASURES = {KAPPA: {"repeats": 4, "batch": 4, "channels": 1}, REGIONS: {"repeats": 4, "count": 300}}
CELLS = {KAPPA: ON_A_BATCH | {"repeats": 3}, "naswot": ON_A_BATCH | {"repeats": 3}, "snip": ON_A_BATCH}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with settings of searches and a study, prepared images, the first mask, and some cells."""
    folder = tmp_path_factory.mktemp("inputs")
    prepared(folder, folder / "data")
    write_settings(folder / "search.json", MEASURES)
    assert main(["mask", "--settings", str(folder / "search.json"), "--out", str(folder / "mask.json")]) == 0
    rounds = [{"kind": "cells", "sample": 30, "keep": 2, "measures": CELLS}]
    write_json(folder / "cells.json", search_settings("nas-bench-201", "pruning", {"measures": {}, "rounds": rounds}))
    study = {"space": "nas-bench-201", "dataset": "digits", "cells": 30, "measures": CELLS}
    write_json(folder / "study.json", study_settings(study, "study"))
    cells = cells_of(NAS, 30).cells
    write_csv(folder / "cells.csv", ("cell", "arch"), [{"cell": cell.number, "arch": cell.arch} for cell in cells])
    return folder


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory) -> Path:
    """The scores of a job that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(command(inputs, folder)) == 0
    return folder


def write_settings(path: Path, measures: dict) -> None:
    asked = json.dumps(search_settings("nas-bench-201", "pruning", {"measures": measures}))
    assert main(["settings", "search", asked, "--out", str(path)]) == 0


def command(inputs: Path, out: Path, **options: object) -> list[str]:
    options = {
        "settings": inputs / "search.json", "images": inputs / "data/images.npy", "subjects": inputs / "mask.json", "round": 1,
        "seed": 0, "shard": "1/2", "device": "cpu", "threads": 1, "out": out / "1.csv",
    } | options  # fmt: skip
    return ["score", *(str(part) for key, value in options.items() for part in (f"--{key}", value))]


def of_cells(inputs: Path, out: Path, **options: object) -> list[str]:
    return command(inputs, out, **{"settings": inputs / "cells.json", "subjects": inputs / "cells.csv"} | options)


def of_a_study(inputs: Path, out: Path, **options: object) -> list[str]:
    options = {
        "settings": inputs / "study.json", "images": inputs / "data/images.npy", "cells": inputs / "cells.csv",
        "shard": "1/2", "device": "cpu", "threads": 1, "out": out / "1.csv",
    } | options  # fmt: skip
    return ["study", "score", *(str(part) for key, value in options.items() for part in (f"--{key}", value))]


def lines(path: Path) -> list[bytes]:
    """The measurements that a partial file holds in whole lines."""
    return path.read_bytes().split(b"\n")[1:-1] if path.exists() else []


def kill_in_the_middle(inputs: Path, out: Path, after: int = 10, job=command, **options: object) -> int:
    """SIGKILL a real job and its processes once ``after`` measurements are kept; how many are by then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tenas.cli", *job(inputs, out, **options)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        started = time.monotonic()
        while len(lines(out / PARTIAL)) < after:
            assert process.poll() is None, "the job ended before it could be killed"
            assert time.monotonic() - started < 120
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "1.csv").exists()
    assert not (out / "1.json").exists()
    return len(lines(out / PARTIAL))


@pytest.fixture(scope="module")
def left(inputs, tmp_path_factory) -> bytes:
    """What a killed job has left, in whole lines."""
    folder = tmp_path_factory.mktemp("killed")
    kill_in_the_middle(inputs, folder)
    content = (folder / PARTIAL).read_bytes()
    return content[: content.rindex(b"\n") + 1]


def record(folder: Path) -> dict:
    return json.loads((folder / "1.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_killed_job_is_resumed(inputs, undisturbed, tmp_path, capsys, threads):
    kept = kill_in_the_middle(inputs, tmp_path, threads=threads)
    seconds = float(lines(tmp_path / PARTIAL)[-1].split(b",")[-1])
    total = record(undisturbed)["measurements"]
    assert 10 <= kept < total
    assert main(command(inputs, tmp_path, threads=threads)) == 0
    assert (tmp_path / "1.csv").read_bytes() == (undisturbed / "1.csv").read_bytes()
    assert record(tmp_path)["resumed"] == kept
    assert record(tmp_path)["wall_seconds"] > seconds > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.csv", "1.json"]
    assert f"{total} of {total} measurements" in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_job_of_the_same_shard_waits_for_the_first(inputs, undisturbed, tmp_path):
    """As when Snakemake is killed, its jobs are not, and it is started again at once."""
    start = [sys.executable, "-m", "tenas.cli", *command(inputs, tmp_path)]
    jobs = []
    for _ in range(2):
        jobs.append(subprocess.Popen(start, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True))
        while jobs[0].poll() is None and not (tmp_path / PARTIAL).exists():
            time.sleep(0.005)
    said = [job.communicate(timeout=300)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert (tmp_path / "1.csv").read_bytes() == (undisturbed / "1.csv").read_bytes()
    assert record(tmp_path)["resumed"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.csv", "1.json"]
    # It measures nothing again, unless the first one had ended before it looked.
    waited = f"{tmp_path}/1.csv is being written by process {jobs[0].pid} on " in said[1]
    assert waited == ("shard 1/2" not in said[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "threads"),
    [
        (of_cells, 2),
        (of_a_study, 1),
        pytest.param(of_cells, 1, marks=pytest.mark.long),
        pytest.param(of_a_study, 2, marks=pytest.mark.long),
    ],
)
def test_a_killed_job_of_cells_is_resumed(inputs, tmp_path, job, threads):
    assert main(job(inputs, tmp_path / "whole")) == 0
    (tmp_path / "killed").mkdir()
    kept = kill_in_the_middle(inputs, tmp_path / "killed", job=job, threads=threads)
    assert main(job(inputs, tmp_path / "killed", threads=threads)) == 0
    assert (tmp_path / "killed/1.csv").read_bytes() == (tmp_path / "whole/1.csv").read_bytes()
    made = record(tmp_path / "killed")
    assert made["resumed"] == kept >= 10
    assert made["measurements"] == 15 * 7
    assert {name: cost["measurements"] for name, cost in made["costs"].items()} == {KAPPA: 45, "naswot": 45, "snip": 15}
    assert all(cost["seconds"] > 0 for cost in made["costs"].values())
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["1.csv", "1.json"]


def test_labels_are_an_input_of_measures_that_need_them(inputs, undisturbed, tmp_path):
    assert main(of_cells(inputs, tmp_path)) == 0
    assert [Path(name).name for name in record(tmp_path)["inputs"]] == ["images.npy", "card.json", "cells.csv", "labels.npy"]
    assert [Path(name).name for name in record(undisturbed)["inputs"]] == ["images.npy", "card.json", "mask.json"]


def checksum(line: str, origin: str) -> str:
    return f"{crc32(f'{origin}{line}'.encode()):08x}"


def test_what_is_kept_is_taken_as_it_is(inputs, undisturbed, left, tmp_path):
    """A value changed in the partial file comes back in the scores: it wasn't measured again."""
    first, *rest = left.decode().splitlines(keepends=True)
    line = rest[0].strip().split(",")[1:]
    line[3] = str(float(line[3]) + 1)
    rest[0] = ",".join([checksum(",".join(line), first.strip()), *line]) + "\n"
    (tmp_path / PARTIAL).write_text("".join([first, *rest]))
    assert main(command(inputs, tmp_path)) == 0
    ours, theirs = ((folder / "1.csv").read_text().splitlines() for folder in (tmp_path, undisturbed))
    ((changed, original),) = [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]]
    assert float(changed.rpartition(",")[2]) == float(original.rpartition(",")[2]) + 1


@pytest.mark.slow
def test_a_second_kill_loses_no_more_than_the_first(inputs, undisturbed, tmp_path):
    first = kill_in_the_middle(inputs, tmp_path)
    second = kill_in_the_middle(inputs, tmp_path, after=first + 10)
    assert main(command(inputs, tmp_path)) == 0
    assert (tmp_path / "1.csv").read_bytes() == (undisturbed / "1.csv").read_bytes()
    assert record(tmp_path)["resumed"] == second


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda content: content[:-9], 1),  # the last line cut off
        (lambda content: content + b"7,linear_reg", 0),  # a line begun
        (lambda content: content + b"\0\0\0\n", 0),  # a block that never reached the disk
        (lambda content: content[:-19] + bytes([content[-19] ^ 1]) + content[-18:], 1),  # a bit turned in the last line
        (lambda content: content[: content.index(b"\n") - 5], None),  # not even a first line
        (lambda content: b"", None),
    ],
    ids=["cut off", "begun", "zeros", "turned", "headless", "empty"],
)
@pytest.mark.slow
def test_a_torn_file_counts_up_to_the_damage(inputs, undisturbed, left, tmp_path, damage, lost):
    (tmp_path / PARTIAL).write_bytes(damage(left))
    assert main(command(inputs, tmp_path)) == 0
    assert (tmp_path / "1.csv").read_bytes() == (undisturbed / "1.csv").read_bytes()
    assert record(tmp_path)["resumed"] == (0 if lost is None else left.count(b"\n") - 1 - lost)


@pytest.mark.slow
def test_measurements_of_something_else_are_not_used(inputs, left, tmp_path):
    """Another seed, shard, mask, settings or images: the shard is measured from its start."""
    others = tmp_path / "others"
    write_settings(others / "search.json", MEASURES | {REGIONS: {"repeats": 4, "count": 200}})
    data, mask = others / "data/images.npy", others / "mask.json"
    prepared(inputs, data.parent, images=40)
    mask.write_text((inputs / "mask.json").read_text() + "\n")
    for number, options in enumerate(
        ({"seed": 1}, {"shard": "2/2"}, {"settings": others / "search.json"}, {"images": data}, {"subjects": mask})
    ):
        out = tmp_path / f"out{number}"
        out.mkdir()
        (out / PARTIAL).write_bytes(left)
        assert main(command(inputs, out, **options)) == 0
        assert record(out)["resumed"] == 0, options
        assert not (out / PARTIAL).exists()


@pytest.mark.slow
def test_another_kind_of_processor_starts_from_the_start(inputs, left, tmp_path):
    """One record names one processor: scores of two kinds would not be what it says."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("torch has no other instructions to do without here")
    (tmp_path / PARTIAL).write_bytes(left)
    environment = {"PYTHONPATH": str(ROOT), "ATEN_CPU_CAPABILITY": "default"}
    subprocess.run(
        [sys.executable, "-m", "tenas.cli", *command(inputs, tmp_path)],
        env=os.environ | environment, check=True, capture_output=True,
    )  # fmt: skip
    assert record(tmp_path)["resumed"] == 0
    assert record(tmp_path)["machine"]["instructions"] == "DEFAULT"


def test_whatever_the_values_follow_from_is_in_the_first_line():
    facts = {"settings": {"a": 1}, "inputs": ["x"], "seed": 0, "round": 1, "shard": (1, 2), "device": "cpu"}
    assert origin_of(facts) == origin_of(dict(reversed(facts.items())))
    changes = ({"settings": {"a": 2}}, {"inputs": ["y"]}, {"seed": 1}, {"round": 2}, {"shard": (1, 3)}, {"device": "cuda"})
    assert len({origin_of(facts | change) for change in changes} | {origin_of(facts)}) == 7


def test_numbers_come_back_as_they_were(tmp_path):
    values = {
        Measurement(0, "linear_regions", 0): 812,
        Measurement(3, "ntk_condition_number", 1): 0.1 + 0.2,
        Measurement(4, "ntk_condition_number", 1): float("inf"),
        Measurement(5, "ntk_condition_number", 1): 1e22,
        Measurement(6, "own", 0): -132,
    }
    with Checkpoint(tmp_path / "p", "origin") as checkpoint:
        for number, (measurement, value) in enumerate(values.items()):
            checkpoint.add(Result(measurement, value, 0.25 * number), float(number))
    again = Checkpoint(tmp_path / "p", "origin")
    assert list(map(repr, again.values.items())) == list(map(repr, values.items()))
    assert list(again.costs.values()) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert again.seconds == 4.0
    assert Checkpoint(tmp_path / "p", "another").values == {}


@pytest.mark.slow
def test_scores_have_their_own_record(inputs, undisturbed, tmp_path):
    """It holds their hash and its own, and scores of an earlier run don't outlive the record that they had."""
    made = record(undisturbed)
    assert made["scores_sha256"] == sha256(undisturbed / "1.csv")
    assert made["resumed"] == 0
    assert sealed({key: value for key, value in made.items() if key != "record_sha256"}) == made
    assert main(command(inputs, tmp_path)) == 0
    (tmp_path / "1.json").unlink()
    (tmp_path / "1.json").mkdir()  # the record cannot be written
    assert main(command(inputs, tmp_path, seed=1)) == 2
    assert not (tmp_path / "1.csv").exists()
