"""A score job that is killed: what it had measured is not measured again, and the scores are those of an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from tenas.search.partial import Partial, origin_of
from tenas.search.table import Measurement

from tenas.cli import main
from tenas.files import sha256
from tenas.provenance import sealed

PARTIAL = ".1.partial"
# 13 trials in a shard, 8 measurements each: a second of work, in pieces of some milliseconds.
CHANGES = {
    "measures": {
        "ntk_condition_number": {"repeats": 4, "batch": 4, "channels": 1},
        "linear_regions": {"repeats": 4, "count": 300},
    }
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with settings, prepared images and the first mask."""
    folder = tmp_path_factory.mktemp("inputs")
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    np.savez(folder / "mine.npz", images=images, labels=np.arange(60) % 3)
    prepared = json.dumps({"source": "npz", "path": str(folder / "mine.npz")})
    assert main(["prepare", prepared, "--out", str(folder / "data")]) == 0
    write_settings(folder / "search.json", CHANGES)
    assert main(["mask", "--settings", str(folder / "search.json"), "--out", str(folder / "mask.json")]) == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory) -> Path:
    """The scores of a job that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(command(inputs, folder)) == 0
    return folder


def write_settings(path: Path, changes: dict) -> None:
    asked = json.dumps({"space": "nas-bench-201", "preset": "default", "changes": changes})
    assert main(["settings", "search", asked, "--out", str(path)]) == 0


def command(inputs: Path, out: Path, **options: object) -> list[str]:
    options = {
        "settings": inputs / "search.json", "images": inputs / "data/images.npy", "mask": inputs / "mask.json", "round": 1,
        "seed": 0, "shard": "1/2", "device": "cpu", "threads": 1, "out": out / "1.csv",
    } | options  # fmt: skip
    return ["score", *(str(part) for key, value in options.items() for part in (f"--{key}", value))]


def lines(path: Path) -> list[bytes]:
    """The measurements that a partial file holds in whole lines."""
    return path.read_bytes().split(b"\n")[1:-1] if path.exists() else []


def kill_in_the_middle(inputs: Path, out: Path, after: int = 10, **options: object) -> int:
    """SIGKILL a real job and its processes once ``after`` measurements are kept; how many are by then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tenas.cli", *command(inputs, out, **options)],
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


@pytest.mark.parametrize("threads", [1, 2])
def test_a_killed_job_is_gone_on_with(inputs, undisturbed, tmp_path, capsys, threads):
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


def test_what_is_kept_is_taken_as_it_is(inputs, undisturbed, left, tmp_path):
    """A value changed in the partial file comes back in the scores: it wasn't measured again."""
    first, *rest = left.decode().splitlines(keepends=True)
    trial, measure, repeat, value, seconds = rest[0].split(",")
    rest[0] = f"{trial},{measure},{repeat},{float(value) + 1},{seconds}"
    (tmp_path / PARTIAL).write_text("".join([first, *rest]))
    assert main(command(inputs, tmp_path)) == 0
    ours, theirs = ((folder / "1.csv").read_text().splitlines() for folder in (tmp_path, undisturbed))
    ((changed, original),) = [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]]
    assert float(changed.rpartition(",")[2]) == float(original.rpartition(",")[2]) + 1


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
        (lambda content: content[: content.index(b"\n") - 5], None),  # not even a first line
        (lambda content: b"", None),
    ],
    ids=["cut off", "begun", "zeros", "headless", "empty"],
)
def test_a_torn_file_counts_up_to_the_damage(inputs, undisturbed, left, tmp_path, damage, lost):
    (tmp_path / PARTIAL).write_bytes(damage(left))
    assert main(command(inputs, tmp_path)) == 0
    assert (tmp_path / "1.csv").read_bytes() == (undisturbed / "1.csv").read_bytes()
    assert record(tmp_path)["resumed"] == (0 if lost is None else left.count(b"\n") - 1 - lost)


def test_measurements_of_something_else_are_not_used(inputs, left, tmp_path):
    """Another seed, shard, mask, settings or images: the shard is measured from its start."""
    others = tmp_path / "others"
    write_settings(others / "search.json", {"measures": CHANGES["measures"] | {"linear_regions": {"repeats": 4, "count": 200}}})
    data, mask = others / "data/images.npy", others / "mask.json"
    prepared = json.dumps({"source": "npz", "path": str(inputs / "mine.npz"), "images": 40})
    assert main(["prepare", prepared, "--out", str(data.parent)]) == 0
    mask.write_text((inputs / "mask.json").read_text() + "\n")
    for number, options in enumerate(
        ({"seed": 1}, {"shard": "2/2"}, {"settings": others / "search.json"}, {"images": data}, {"mask": mask})
    ):
        out = tmp_path / f"out{number}"
        out.mkdir()
        (out / PARTIAL).write_bytes(left)
        assert main(command(inputs, out, **options)) == 0
        assert record(out)["resumed"] == 0, options
        assert not (out / PARTIAL).exists()


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
    }
    with Partial(tmp_path / "p.csv", "origin") as partial:
        for number, (measurement, value) in enumerate(values.items()):
            partial.add(measurement, value, float(number))
    again = Partial(tmp_path / "p.csv", "origin")
    assert list(map(repr, again.values.items())) == list(map(repr, values.items()))
    assert again.seconds == 3.0
    assert Partial(tmp_path / "p.csv", "another").values == {}


def test_scores_have_their_own_record(inputs, undisturbed, tmp_path):
    """It holds their hash and its own, and scores of an earlier run don't outlive the record that they had."""
    made = record(undisturbed)
    assert made["scores_sha256"] == sha256(undisturbed / "1.csv")
    assert made["resumed"] == 0
    assert sealed({key: value for key, value in made.items() if key != "record_sha256"}) == made
    assert main(command(inputs, tmp_path)) == 0
    (tmp_path / "1.json").unlink()
    (tmp_path / "1.json").mkdir()  # the record cannot be written
    with pytest.raises(OSError, match=r"1\.json"):
        main(command(inputs, tmp_path, seed=1))
    assert not (tmp_path / "1.csv").exists()
