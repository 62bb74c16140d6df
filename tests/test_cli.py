"""The command line, as its users meet it: real processes, sentences, exit codes, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tenas.cli import main
from tenas.files import sha256

TINY = """
exclude: [none]
prune: 1
change: log
ranks: average
measures:
  ntk_condition_number: {repeats: 1, batch: 4, channels: 1, cells: 1, weights: kaiming_fan_out, redraw: true}
  linear_regions: {repeats: 2, inputs: crops, count: 300, blocks: 3, channels: 1, weights: kaiming_fan_in, redraw: true}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared data set of 40 small images."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    # Smooth pictures, not noise: a crop of a photograph is mostly of one grey.
    coarse = generator.integers(0, 256, (60, 4, 4, 3))
    images = coarse.repeat(4, 1).repeat(4, 2) + generator.integers(-8, 8, (60, 16, 16, 3))
    np.savez(folder / "mine.npz", images=images.clip(0, 255).astype(np.uint8), labels=np.arange(60) % 3)
    assert main(["prepare", json.dumps({"source": "npz", "path": str(folder / "mine.npz")}), "--out", str(folder / "mine")]) == 0
    return folder / "mine"


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory, data):
    """A run with one finished search, to be read and not to be changed."""
    folder = tmp_path_factory.mktemp("found")
    (folder / "tiny.yaml").write_text(TINY)
    assert main(["search", "--data", str(data), "--preset", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tenas.cli", *map(str, arguments)], capture_output=True, text=True, check=False)


def refused(capsys, *arguments: object) -> str:
    """The sentence with which the command is refused."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tenas: ")
    assert err.endswith(".\n")
    assert err.count("\n") == 1
    return err


def files(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_whole_search_in_one_process(tmp_path, data, preset):
    done = run("search", "--data", data, "--preset", preset, "--seeds", 0, 1, "--threads", 2, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["seed 0", "seed 1"]
    for seed, line in enumerate(lines):
        genotype = json.loads((tmp_path / "run" / f"seed{seed}" / "genotype.json").read_text())
        assert line == f"seed {seed}: {genotype['arch']}"
        assert files(tmp_path / "run" / f"seed{seed}") == [
            "genotype.json", "genotype.svg", "round0/mask.json",
            *(f"round{r}/{name}" for r in (1, 2, 3) for name in ("mask.json", "ranking.csv", "scores/1.csv", "scores/1.json")),
        ]  # fmt: skip
    assert "search: 342 of 342 measurements" in done.stderr


def test_stages_and_search_end_in_the_same_bytes(tmp_path, data, found):
    whole, staged = found, tmp_path / "staged"
    settings = tmp_path / "search.json"
    given = json.dumps({"space": "nas-bench-201", "preset": str(found.parent / "tiny.yaml")})
    assert main(["settings", "search", given, "--out", str(settings)]) == 0
    assert settings.read_bytes() == (whole / "search.json").read_bytes()
    mask = staged / "round0/mask.json"
    assert main(["mask", "--settings", str(settings), "--out", str(mask)]) == 0
    for number in (1, 2, 3):
        folder = staged / f"round{number}"
        common = ["--settings", str(settings), "--mask", str(mask), "--round", str(number)]
        scores = [str(folder / f"scores/{shard}.csv") for shard in (1, 2, 3)]
        for shard, out in enumerate(scores, start=1):
            images = str(data / "images.npy")
            assert main(["score", *common, "--images", images, "--seed", "0", "--shard", f"{shard}/3", "--out", out]) == 0
        mask = folder / "mask.json"
        ranking = str(folder / "ranking.csv")
        assert main(["prune", *common, "--scores", *scores, "--ranking", ranking, "--out", str(mask)]) == 0
    out, svg = str(staged / "genotype.json"), str(staged / "genotype.svg")
    assert main(["genotype", "--settings", str(settings), "--mask", str(mask), "--out", out, "--svg", svg]) == 0
    for name in ("round1/ranking.csv", "round2/ranking.csv", "round3/ranking.csv", "round3/mask.json", "genotype.json"):
        assert (whole / "seed0" / name).read_bytes() == (staged / name).read_bytes(), name
    rows = (whole / "seed0/round1/scores/1.csv").read_text().splitlines()
    assert rows[0] == "round,trial,cell,edge,target,source,operator,measure,repeat,value"
    assert len(rows) == 1 + 25 * 3


def test_what_made_a_score_is_beside_it(found):
    made = json.loads((found / "seed0/round1/scores/1.json").read_text())
    assert made["seed"] == 0
    assert made["measurements"] == 75
    assert made["settings"]["measures"]["linear_regions"]["repeats"] == 2
    assert set(made["packages"]) >= {"python", "torch", "numpy"}
    assert made["machine"]["device"] in {"cpu", "cuda"}
    assert made["machine"]["instructions"] == torch.backends.cpu.get_cpu_capability()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and "model name" in (models := cpuinfo.read_text()):
        assert f": {made['machine']['processor']}\n" in models
    assert made["wall_seconds"] > 0
    assert len(made["code_sha256"]) == 64
    assert [path.rpartition("/")[2] for path in made["inputs"]] == ["images.npy", "card.json", "mask.json"]
    assert made["resumed"] == 0
    assert made["scores_sha256"] == sha256(found / "seed0/round1/scores/1.csv")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"space": "nowhere", "preset": "default"}, "Unknown space 'nowhere'; known: nas-bench-201"),
        ({"space": "nas-bench-201", "preset": "fast"}, "Unknown search preset 'fast'; known: default, paper, released"),
        ({"space": "nas-bench-201", "preset": "default", "changes": {"prunes": 2}}, "unknown key 'prunes'"),
        ({"space": "nas-bench-201", "preset": "default", "changes": {"change": "logs"}}, "allowed: log, relative, absolute"),
        ({"space": "nas-bench-201", "preset": "default", "changes": {"measures": {"kappa": {}}}}, "unknown key 'kappa'"),
        (
            {"space": "nas-bench-201", "preset": "default", "changes": {"measures": {"linear_regions": {"repeats": 0}}}},
            "'measures.linear_regions.repeats'",
        ),
        ({"space": "nas-bench-201", "preset": "default", "changes": {"prune": "one"}}, "of the type integer"),
        ({"space": "nas-bench-201", "preset": "default", "changes": {"exclude": ["conv"]}}, "Unknown operator"),
        (
            {
                "space": "nas-bench-201",
                "preset": "default",
                "changes": {"exclude": ["none", "skip_connect", "nor_conv_1x1", "avg_pool_3x3"]},
            },
            "leaves nothing to search",
        ),
        ({"space": "nas-bench-201"}, "with the keys space, preset"),
    ],
)
def test_settings_that_cannot_be_are_refused(capsys, tmp_path, given, message):
    assert message in refused(capsys, "settings", "search", json.dumps(given), "--out", tmp_path / "search.json")
    assert files(tmp_path) == []


def test_a_preset_that_is_no_yaml_is_refused(capsys, tmp_path):
    (tmp_path / "p.yaml").write_text("a: [1")
    given = json.dumps({"space": "nas-bench-201", "preset": str(tmp_path / "p.yaml")})
    assert "is not valid YAML" in refused(capsys, "settings", "search", given, "--out", tmp_path / "search.json")


def test_too_few_images_for_the_batch_are_refused(capsys, tmp_path, data, preset):
    preset.write_text(TINY.replace("batch: 4", "batch: 4000"))
    message = refused(capsys, "search", "--data", data, "--preset", preset, "--out", tmp_path / "run")
    assert "A batch of 4000 images was asked for" in message
    assert files(tmp_path / "run") == ["search.json", "seed0/round0/mask.json"]


def test_images_that_were_not_prepared_are_refused(capsys, tmp_path, preset):
    assert "cannot be read" in refused(capsys, "search", "--data", tmp_path / "no", "--preset", preset, "--out", tmp_path / "run")


def test_a_truncated_scores_file_is_refused(capsys, tmp_path, found):
    seed = found / "seed0"
    scores, out = tmp_path / "1.csv", tmp_path / "again"
    scores.write_bytes((seed / "round1/scores/1.csv").read_bytes()[:-40])
    message = refused(
        capsys, "prune", "--settings", found / "search.json", "--mask", seed / "round0/mask.json", "--round", 1,
        "--scores", scores, "--ranking", out / "ranking.csv", "--out", out / "mask.json",
    )  # fmt: skip
    assert "cut off" in message
    assert not out.exists()


def test_a_genotype_of_another_space_is_refused(capsys, tmp_path):
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps({"space": "nas-bench-201", "arch": "Genotype(normal=[('sep_conv_3x3', 0)])"}))
    assert "is not a cell of nas-bench-201" in refused(capsys, "benchmark", "query", path, "--out", tmp_path / "out.json")
    assert files(tmp_path) == ["genotype.json"]


def test_an_unfinished_search_has_no_genotype(capsys, tmp_path, found):
    message = refused(
        capsys, "genotype", "--settings", found / "search.json", "--mask", found / "seed0/round2/mask.json",
        "--out", tmp_path / "g.json", "--svg", tmp_path / "g.svg",
    )  # fmt: skip
    assert "The search has not ended: edge 1<-0" in message
    assert not (tmp_path / "g.json").exists()
    assert not (tmp_path / "g.svg").exists()


@pytest.mark.parametrize("arguments", [[], ["score"], ["score", "--shard", "3/2"], ["search", "--threads", "0", "--out", "x"]])
def test_a_wrong_call_exits_with_2_and_says_how_it_goes(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: tenas")
    assert "Traceback" not in done.stderr
