"""The command line, as its users meet it: real processes, sentences, exit codes, nothing half-written."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.engine import TINY, files, prepared, refused
from PIL import Image

import tenas
from tenas.cli import HEADINGS, command_parser, main
from tenas.config import load_config
from tenas.files import sha256
from tenas.settings import search_settings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared data set of 48 small images."""
    folder = tmp_path_factory.mktemp("data")
    return prepared(folder, folder / "mine")


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


@pytest.mark.slow
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
    for seed in (0, 1):
        for number, trials in enumerate((25, 19, 13), start=1):
            assert f"seed {seed}, round {number}, shard 1/1: {trials * 3} of {trials * 3} measurements" in done.stderr


@pytest.mark.slow
def test_stages_and_search_end_in_the_same_bytes(tmp_path, data, found):
    whole, staged = found, tmp_path / "staged"
    settings = tmp_path / "search.json"
    given = json.dumps(search_settings("nas-bench-201", str(found.parent / "tiny.yaml")))
    assert main(["settings", "search", given, "--out", str(settings)]) == 0
    assert settings.read_bytes() == (whole / "search.json").read_bytes()
    mask = staged / "round0/mask.json"
    assert main(["mask", "--settings", str(settings), "--out", str(mask)]) == 0
    for number in (1, 2, 3):
        folder = staged / f"round{number}"
        common = ["--settings", str(settings), "--round", str(number)]
        scores = [str(folder / f"scores/{shard}.csv") for shard in (1, 2, 3)]
        for shard, out in enumerate(scores, start=1):
            given = ["--images", str(data / "images.npy"), "--subjects", str(mask), "--seed", "0", "--shard", f"{shard}/3"]
            assert main(["score", *common, *given, "--out", out]) == 0
        before, mask = mask, folder / "mask.json"
        ranking = str(folder / "ranking.csv")
        given = ["--mask", str(before), "--scores", *scores, "--ranking", ranking]
        assert main(["prune", *common, *given, "--out", str(mask)]) == 0
    out, svg = str(staged / "genotype.json"), str(staged / "genotype.svg")
    assert main(["genotype", "--settings", str(settings), "--state", str(mask), "--out", out]) == 0
    assert main(["draw", "--genotype", out, "--out", svg]) == 0
    for name in ("round1/ranking.csv", "round2/ranking.csv", "round3/ranking.csv", "round3/mask.json", "genotype.json",
                 "genotype.svg"):  # fmt: skip
        assert (whole / "seed0" / name).read_bytes() == (staged / name).read_bytes(), name
    rows = (whole / "seed0/round1/scores/1.csv").read_text().splitlines()
    assert rows[0] == "round,trial,cell,edge,target,source,operator,measure,repeat,value"
    assert len(rows) == 1 + 25 * 3


@pytest.mark.slow
def test_a_search_that_is_there_is_not_measured_again(found, data, capsys, tmp_path):
    """The same command again leaves every file as it is, and so does one whose last round has been removed."""
    folder = tmp_path / "run"
    command = ["search", "--data", str(data), "--preset", str(found.parent / "tiny.yaml"), "--out", str(folder)]
    assert main(command) == 0
    scores = sorted(folder.rglob("scores/*"))
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in scores]
    (folder / "seed0/round3/mask.json").unlink()
    (folder / "seed0/genotype.json").unlink()
    assert main(command) == 0
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in scores] == before
    assert (folder / "seed0/genotype.json").read_bytes() == (found / "seed0/genotype.json").read_bytes()
    # Scores that were edited, or follow from something else, are measured again.
    (folder / "seed0/round1/scores/1.csv").write_text("edited\n")
    assert main(command) == 0
    assert [path.read_bytes() for path in scores if path.suffix == ".csv"] == [
        content for path, (content, _) in zip(scores, before, strict=True) if path.suffix == ".csv"
    ]
    capsys.readouterr()
    message = refused(capsys, *command, "--set", "rounds.1.aggregate=log_rank_sum")
    assert "has a search of other settings" in message


def test_what_made_a_score_is_beside_it(found):
    made = json.loads((found / "seed0/round1/scores/1.json").read_text())
    assert made["seed"] == 0
    assert made["measurements"] == 75
    assert made["settings"]["rounds"][0]["measures"]["linear_regions"]["repeats"] == 2
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


def test_scores_that_were_edited_are_not_pruned_by(capsys, tmp_path, found):
    """One digit of a scores file turned: its record has another hash."""
    seed = found / "seed0"
    text = (seed / "round1/scores/1.csv").read_text()
    (tmp_path / "1.json").write_bytes((seed / "round1/scores/1.json").read_bytes())
    digit = next(place for place in range(len(text) - 2, 0, -1) if text[place].isdigit())
    (tmp_path / "1.csv").write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])
    message = refused(
        capsys, "prune", "--settings", found / "search.json", "--mask", seed / "round0/mask.json", "--round", 1,
        "--scores", tmp_path / "1.csv", "--ranking", tmp_path / "ranking.csv", "--out", tmp_path / "mask.json",
    )  # fmt: skip
    assert "has changed since it was written: its record has another hash" in message
    assert files(tmp_path) == ["1.csv", "1.json"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--space", "nowhere"], "Unknown space 'nowhere'; known: nas-bench-201"),
        (["--preset", "fast"], "Unknown search preset 'fast'; known: default, paper, pruning, released"),
        (["--set", "prunes=2"], "unknown key 'prunes'"),
        (["--set", "change=logs"], "allowed: log, relative, absolute"),
        (["--set", "measures.kappa.repeats=2"], "Unknown measure 'kappa'"),
        (["--set", "measures.flop=null"], "Unknown measure 'flop'"),
        (["--seeds", "0", "1", "0"], "The seed 0 is given twice."),
        (["--set", "measures.zen.repeats=2"], "no round measures 'zen', which 'measures' has"),
        (["--set", "measures.linear_regions.repeats=0"], "'measures.linear_regions.repeats' is 0; it must be at least 1"),
        (["--set", "prune=one"], "'prune' is 'one'; it must be a whole number"),
        (["--set", "exclude=[conv]"], "Unknown operator of nas-bench-201 'conv'"),
        (
            ["--preset", "pruning", "--set", "exclude=[none, skip_connect, nor_conv_1x1, avg_pool_3x3]"],
            "leaves nothing to search",
        ),
        (["--set", "prune"], "expected KEY=VALUE"),
        (["--limit", "parameters=1000"], "No cell of nas-bench-201 has at most 1,000 parameters: the smallest has"),
        (["--limit", "weight=5"], "unknown key 'weight' in 'limits'"),
        (["--limit", "latency=5"], "another form than latency=FILE:COLUMN:MOST"),
        (["--trainings", "some"], "'trainings' is 'some'; allowed: real, table, table:COLUMN, none"),
    ],
)
@pytest.mark.slow
def test_a_search_that_cannot_be_is_refused_before_it_measures(capsys, tmp_path, data, given, message):
    extra = ["--set", "rounds=[{kind: cells, sample: 4, keep: 2}, {kind: training}]"] if "--trainings" in given else []
    assert message in refused(capsys, "search", "--data", data, *given, *extra, "--out", tmp_path / "run")
    assert [name for name in files(tmp_path) if name != "run/search.json"] == []


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("search", {"preset": None}, "'preset' is None; it must be a text"),
        ("search", {"rounds": []}, "'rounds' has 0 entries; it must have at least 1"),
        ("search", {"space": "nowhere"}, "Unknown space 'nowhere'"),
        ("search", {"colour": 1}, "unknown key 'colour' in the top level; known: space, preset"),
        ("study", {}, "unknown key"),
        ("retrain", {}, "unknown key"),
    ],
)
def test_settings_that_cannot_be_are_refused(capsys, tmp_path, kind, change, message):
    given = search_settings("nas-bench-201", "released") | change
    assert message in refused(capsys, "settings", kind, json.dumps(given), "--out", tmp_path / "settings.json")
    del given["preset"]
    if kind == "search" and change == {"preset": None}:
        message = refused(capsys, "settings", kind, json.dumps(given), "--out", tmp_path / "settings.json")
        assert "the key 'preset' is missing in the top level" in message
    assert files(tmp_path) == []


def test_a_preset_that_is_no_yaml_is_refused(capsys, tmp_path, data):
    (tmp_path / "p.yaml").write_text("a: [1")
    message = refused(capsys, "search", "--data", data, "--preset", tmp_path / "p.yaml", "--out", tmp_path / "run")
    assert "is not valid YAML" in message
    assert files(tmp_path) == ["p.yaml"]


def test_too_few_images_for_the_batch_are_refused(capsys, tmp_path, data, preset):
    preset.write_text(TINY.replace("batch: 4", "batch: 4000"))
    message = refused(capsys, "search", "--data", data, "--preset", preset, "--out", tmp_path / "run")
    assert "A batch of 4000 images was asked for" in message
    assert files(tmp_path / "run") == ["search.json", "seed0/round0/mask.json"]


def test_images_that_were_not_prepared_are_refused(capsys, tmp_path, preset):
    message = refused(capsys, "search", "--data", tmp_path / "no", "--preset", preset, "--out", tmp_path / "run")
    assert "There are no images in" in message
    assert "tenas prepare" in message
    (tmp_path / "empty").mkdir()
    message = refused(capsys, "search", "--data", tmp_path / "empty", "--preset", preset, "--out", tmp_path / "run")
    assert "neither a folder 'train' nor at least two class folders" in message


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
        capsys, "genotype", "--settings", found / "search.json", "--state", found / "seed0/round2/mask.json",
        "--out", tmp_path / "g.json",
    )  # fmt: skip
    assert "The search has not ended: edge 1<-0" in message
    assert not (tmp_path / "g.json").exists()


@pytest.mark.parametrize("arguments", [[], ["score"], ["score", "--shard", "3/2"], ["search", "--threads", "0", "--out", "x"],
                                       ["search", "--out", ""]])  # fmt: skip
def test_a_wrong_call_exits_with_2_and_says_how_it_goes(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: tenas")
    assert "Traceback" not in done.stderr


def test_every_stage_explains_itself(capsys):
    """From its signature: every parameter has a help text, and lists name what they hold by default."""

    def parsers(parser):
        yield parser
        for action in parser._actions:
            for inner in action.choices.values() if isinstance(action.choices, dict) else ():
                yield from parsers(inner)

    found = list(parsers(command_parser()))
    assert len(found) > 20
    for parser in found:
        assert parser.format_help()
        assert all(action.help for action in parser._actions if not isinstance(action.choices, dict)), parser.prog
    with pytest.raises(SystemExit):
        main(["search", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "flops=60%" in text
    assert "(default: nas-bench-201)" in text


def commands(parser, name=""):
    """Of each command of the help, in groups too: its name and its parser."""
    inner = next((action.choices for action in parser._actions if isinstance(action.choices, dict)), None)
    if inner is None:
        yield name, parser
    for part, of_it in (inner or {}).items():
        yield from commands(of_it, f"{name} {part}".strip())


def test_the_help_has_all_commands_those_of_users_first_with_examples_that_parse():
    parser = command_parser()
    text = parser.format_help()
    listed = [line.split()[0] for line in text[text.index("find a network:") :].splitlines() if line.startswith("  ")]
    assert listed[:2] == ["search", "run"]
    assert sorted(listed) == sorted({name.partition(" ")[0] for name, _ in commands(parser)})
    of_users = [name for names in HEADINGS.values() for name in names if name != "study"]
    for name, command in commands(parser):
        examples = re.findall(r"^ {4}tenas (.*)$", command.epilog or "", re.MULTILINE)
        if name.partition(" ")[0] in of_users and name != "workflow":
            assert len(examples) >= 2, name
        for example in examples:
            assert example.startswith(f"{name} ") or example == name
            parser.parse_args(shlex.split(example.partition(" |")[0]))


def test_the_package_is_a_command_and_starts_without_what_is_slow():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tenas", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"tenas {tenas.__version__}\n"
    assert not re.search(r"\| +(torch|pandas|numpy|pydantic|snakemake)$", done.stderr, re.MULTILINE)


def save_folder(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), images: int = 20, side: int = 48) -> Path:
    """A folder of PNG files, one folder for each class."""
    generator = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(images):
            Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")
    return folder


def test_images_are_prepared_by_options_as_by_an_entry(tmp_path, capsys):
    photos = save_folder(tmp_path / "photos")
    entry = {"source": "folder", "path": str(photos), "side": 16, "images": 20, "seed": 3}
    assert main(["prepare", json.dumps(entry), "--out", str(tmp_path / "json")]) == 0
    options = ["--side", "16", "--images", "20", "--seed", "3"]
    capsys.readouterr()
    assert main(["prepare", str(photos), *options, "--out", str(tmp_path / "options")]) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'options'}: 20 images to search on, 16x16 pixels, 2 classes (cat, dog); 8 more are held out for testing\n"
        "images are shrunk: the shorter side of the first has 48 pixels; 'side' says to how many\n"
    )
    cards = [json.loads((tmp_path / name / "card.json").read_text()) for name in ("json", "options")]
    for card in cards:
        del card["provenance"]["wall_seconds"], card["record_sha256"]
    assert cards[0] == cards[1]
    assert cards[0]["class_names"] == ["cat", "dog"]
    message = refused(capsys, "prepare", "cifar10", "--out", tmp_path / "none")
    assert "The source cifar10 needs a path" in message
    assert "A path goes with the name of a source" in refused(
        capsys, "prepare", photos, "--path", "x", "--out", tmp_path / "none"
    )


@pytest.mark.slow
def test_a_search_takes_images_and_says_where_it_has_prepared_them(tmp_path, preset):
    photos = save_folder(tmp_path / "photos")
    command = ["search", "--data", photos, "--preset", preset, "--set", "prune=3", "measures.linear_regions.repeats=3"]
    done = run(*command, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"prepared from {photos}: {tmp_path / 'run/data'}: 32 images to search on, 32x32 pixels")
    settings = json.loads((tmp_path / "run/search.json").read_text())
    assert [round["measures"]["linear_regions"]["repeats"] for round in settings["rounds"]] == [3]
    again = run(*command, "--out", tmp_path / "run")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert "prepared" not in again.stderr


def test_a_search_that_was_refused_can_be_corrected(tmp_path, data, preset, capsys):
    command = ["search", "--data", data, "--preset", preset, "--out", tmp_path / "run", "--set", "prune=3"]
    refused(capsys, *command, "measures.ntk_condition_number.batch=4000")
    assert main([*map(str, command)]) == 0


def test_a_configuration_for_ones_own_images(tmp_path, monkeypatch, capsys):
    """It loads, by the models of any configuration, and says what the images are."""
    monkeypatch.chdir(tmp_path)
    save_folder(Path("my photos"))
    assert main(["new", "pets", "--images", "my photos"]) == 0
    assert capsys.readouterr().out == "pets.yaml: 32 images of 2 classes\nnow: tenas run pets.yaml\n"
    text = Path("pets.yaml").read_text()
    assert "the first one has 48 x 48" in text
    run = load_config(yaml.safe_load(text))["runs"]["pets"]
    assert (run["retrain"], run["settings"]["rounds"][-1]["kind"]) == ("digits", "training")
    assert "pets.yaml already exists" in refused(capsys, "new", "pets", "--images", "my photos")
    for name in ("a/b", "=", "<<", "...", "a\tb", "a\nb", "claims"):
        message = refused(capsys, "new", "--images", "my photos", "--out", "c.yaml", "--", name)
        assert "The name of a run and of its data set must" in message
    # A date that there is not, and a line break in the name of the file, which a comment has.
    for name in ("2024-02-30", "null"):
        assert main(["new", name, "--images", "my photos", "--out", f"x\n{name}: [.yaml"]) == 0
        assert load_config(yaml.safe_load(Path(f"x\n{name}: [.yaml").read_text()))["runs"].keys() == {name}
    capsys.readouterr()
    # The networks halve images twice.
    save_folder(Path("odd"), side=30)
    assert main(["new", "odd", "--images", "odd"]) == 0
    config = load_config(yaml.safe_load(Path("odd.yaml").read_text()))
    assert [dataset["side"] for dataset in config["datasets"].values()] == [28]
    capsys.readouterr()
    # What has no labels is searched on and not trained on.
    images = np.random.default_rng(0).integers(0, 256, (40, 24, 20, 3), dtype=np.uint8)
    np.savez("plain.npz", images=images, class_names=["a", "b"])
    assert main(["new", "123", "--images", "plain.npz"]) == 0
    run = load_config(yaml.safe_load(Path("123.yaml").read_text()))["runs"]["123"]
    assert (run["retrain"], run["settings"]["rounds"][-1]["kind"]) == (None, "cells")
    capsys.readouterr()
    save_folder(Path("few"), images=4)
    message = refused(capsys, "new", "few", "--images", "few")
    assert "There are 6 images to search on in few; the search draws batches of 16" in message
    assert not Path("few.yaml").exists()


def test_what_cannot_be_run_is_refused(tmp_path, capsys):
    message = refused(capsys, "run", tmp_path / "none.yaml")
    assert "expected a YAML file (tenas new writes one), or a name of config, darts, nas-bench-201, study-darts" in message


@pytest.mark.slow
def test_values_of_an_option_given_twice_are_joined_and_the_default_is_not_among_them(tmp_path, data, preset):
    for seeds in (["--seeds", 1, "--seeds", 2], ["--seeds", 1, 2]):
        out = tmp_path / f"run{len(seeds)}"
        arguments = ["search", "--data", data, "--preset", preset, "--set", "prune=3", *seeds, "--out", out]
        assert main([str(argument) for argument in arguments]) == 0
        assert sorted(path.name for path in out.glob("seed*")) == ["seed1", "seed2"]


@pytest.mark.parametrize("kilobytes", [600_000, 2_500_000])
def test_too_little_address_space_is_a_sentence(data, tmp_path, kilobytes):
    """Torch cannot be loaded within 3 GB."""
    asked = json.dumps(search_settings("nas-bench-201", "pruning"))
    assert main(["settings", "search", asked, "--out", str(tmp_path / "search.json")]) == 0
    assert main(["mask", "--settings", str(tmp_path / "search.json"), "--out", str(tmp_path / "mask.json")]) == 0
    command = ["score", "--settings", "search.json", "--images", data / "images.npy", "--subjects", "mask.json", "--round", "1"]
    command = [sys.executable, "-m", "tenas.cli", *command, "--seed", "0", "--device", "cpu", "--out", "scores/1.csv"]
    limited = ["bash", "-c", f'ulimit -v {kilobytes}; exec "$@"', "bash", *command]
    found = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (75, "")
    assert found.stderr.startswith("tenas: There is not enough memory: ")
    assert found.stderr.count("\n") == 1
    assert not (tmp_path / "scores").exists()


@pytest.mark.slow
def test_of_two_searches_with_other_settings_into_one_folder_one_refuses(data, preset, tmp_path):
    """Whichever comes first: nothing is a mixture."""
    command = [sys.executable, "-m", "tenas.cli", "search", "--data", data, "--preset", preset, "--device", "cpu"]
    command += ["--out", tmp_path / "run", "--set"]
    both = [subprocess.Popen([*command, f"prune={prune}"], stderr=subprocess.PIPE, text=True) for prune in (1, 2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2]
    assert "has a search of other settings" in said[codes.index(2)]
    kept = json.loads((tmp_path / "run/search.json").read_text())["rounds"]
    assert kept[0]["prune"] == 1 + codes.index(0)
    assert main(["audit", str(tmp_path / "run")]) == 0
