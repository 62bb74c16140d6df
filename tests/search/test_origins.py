"""What a search was made from must not change under it: its images, and its table."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import ROOT
from helpers.runs import call, snakemake, succeed
from PIL import Image

import tenas
import tenas.stages.search as stages
from tenas import layout
from tenas.audit.stage import audit
from tenas.cli import main
from tenas.data import prepare
from tenas.errors import TenasError
from tenas.files import read_json, sha256, write_json
from tenas.report.show import show
from tenas.report.summary import summarise
from tenas.search.given import given_data
from tenas.search.origins import check_same_origins
from tenas.settings import search_settings
from tenas.spaces import get_space

ROUND = {
    "kind": "cells",
    "sample": 4,
    "keep": 2,
    "measures": {
        "naswot": {"repeats": 1, "batch": 4, "channels": 2, "cells": 1, "weights": "pytorch", "redraw": True},
    },
}
TRAINING = {"kind": "training", "keep": 1, "training": {"channels": 2, "cells": 1, "epochs": 1, "batch": 16, "validation": 0.2}}


def draw(path: Path, seed: int, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        draw(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", i)
    return tmp_path / "photos"


def preset(*rounds: dict) -> str:
    Path("preset.yaml").write_text(yaml.safe_dump({"exclude": [], "rounds": [{"kind": "cells", **r} for r in rounds]}))
    return "preset.yaml"


def overwrite(path: Path) -> None:
    """Other pixels of the same size."""
    path.write_bytes(path.read_bytes()[:-3] + bytes([path.read_bytes()[-3] ^ 1]) + path.read_bytes()[-2:])


CHANGES = {
    "another of the same size": lambda photos: overwrite(photos / "a" / "0.png"),
    "one more": lambda photos: draw(photos / "a" / "new.png", 99),
    "one less": lambda photos: (photos / "a" / "0.png").unlink(),
    "another": lambda photos: draw(photos / "a" / "0.png", 99, side=9),
    "another name": lambda photos: (photos / "a" / "0.png").rename(photos / "a" / "z.png"),
    "another class": lambda photos: (photos / "a" / "0.png").rename(photos / "b" / "0.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_has_changed_is_prepared_again(photos, change, capsys):
    folder, _ = given_data("photos", Path("out"))
    before = read_json(folder / "card.json", "card")
    capsys.readouterr()
    given_data("photos", Path("out"))
    assert capsys.readouterr().err == ""  # as it was
    CHANGES[change](photos)
    given_data("photos", Path("out"))
    assert "prepared from photos" in capsys.readouterr().err
    assert read_json(folder / "card.json", "card")["parts_sha256"] != before["parts_sha256"]


def test_so_is_a_source_of_ones_own_that_names_no_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "import numpy as np\nfrom tenas.data import Arrays, Loaded, Source\n"
        "def load(path):\n"
        "    images = np.load('mine.npy')\n"
        "    return Loaded(Arrays(images, np.arange(len(images)) % 2), None, 2)\n"
        "SOURCE = Source(load, needs_path=False)\n"
    )
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.save("mine.npy", images)
    given_data("own.py:SOURCE", Path("out"))
    images[11, 0, 0, 0] ^= 1
    np.save("mine.npy", images)
    capsys.readouterr()
    given_data("own.py:SOURCE", Path("out"))
    assert "prepared from own.py:SOURCE" in capsys.readouterr().err


def test_a_prepared_file_that_is_gone_or_damaged_is_made_again(photos):
    folder, _ = given_data("photos", Path("out"))
    before = (folder / "images.npy").read_bytes()
    (folder / "images.npy").unlink()
    assert (given_data("photos", Path("out"))[0] / "images.npy").read_bytes() == before
    (folder / "labels.npy").write_bytes(b"x")
    given_data("photos", Path("out"))
    assert audit_card(folder) == []


def audit_card(folder: Path) -> list[str]:
    card = read_json(folder / "card.json", "card")
    pairs = (("images.npy", "sha256"), ("labels.npy", "labels_sha256"))
    return [name for name, key in pairs if sha256(folder / name) != card[key]]


def test_the_same_images_may_be_spelled_otherwise(photos, capsys):
    assert search() == 0
    shutil.copytree(photos, "copy")
    before = {path: path.read_bytes() for path in Path("out/data").iterdir()}
    for data in ("./photos/", str(photos), "copy"):
        assert main(["search", "--data", data, "--preset", "preset.yaml", "--out", "out", "--seeds", "1"]) == 0
    (Path("out/data/images.npy")).unlink()
    assert search("--seeds", "2") == 0
    assert Path("out/data/images.npy").read_bytes() == before[Path("out/data/images.npy")]
    assert main(["summary", "out", "--seeds", "0", "1", "2", "--out", "s.csv", "--metrics", "m.json"]) == 0


def test_a_search_goes_on_where_its_images_and_its_preset_were_moved(photos, capsys):
    rounds = [ROUND, TRAINING]
    name = preset(*rounds)
    assert main(["search", "--data", "photos", "--preset", name, "--trainings", "real", "--out", "out"]) == 0
    before = Path("out/search.json").read_bytes()
    photos.rename("moved")
    Path(name).rename("renamed.yaml")
    again = ["search", "--data", "moved", "--preset", "./renamed.yaml", "--trainings", "real", "--out", "out"]
    again += ["--seeds", "0", "1"]
    assert main(again) == 0, capsys.readouterr().err
    assert Path("out/search.json").read_bytes() == before
    assert audit("out").faults == {}
    assert "seed 1\n" in show("out")
    # The results too: their images move with them.
    Path("out").rename("elsewhere")
    found = audit("elsewhere")
    assert found.faults == {}
    card = read_json(Path("elsewhere/data/card.json"), "card")
    write_json(Path("elsewhere/data/card.json"), card | {"classes": 3})
    assert Path("elsewhere/data/card.json") in audit("elsewhere").faults


def test_a_space_and_a_preset_may_be_spelled_otherwise(photos, capsys):
    """A search of other settings says which one is another."""
    lines = ["from torch import nn", "from tenas.spaces import ChainSpace, Layer"]
    lines += ["def conv(i, o, s):", "    return nn.Conv2d(i, o, 3, s, 1)", "def skip(i, o, s):", "    return nn.Identity()"]
    Path("own.py").write_text("\n".join([*lines, "SPACE = ChainSpace('own', {'conv': conv, 'skip': skip}, [Layer()] * 3)", ""]))
    name = preset({**ROUND, "sample": 3})
    for seed, (space, file) in enumerate(
        [("own.py", name), ("./own.py", f"./{name}"), (Path("own.py").resolve(), Path(name).resolve())]
    ):
        call_ = ["search", "--space", f"{space}:SPACE", "--data", "digits", "--preset", str(file), "--out", "out"]
        assert main([*call_, "--seeds", str(seed)]) == 0
    assert audit("out").faults == {}
    assert "seed 2" in show("out")
    capsys.readouterr()
    preset({**ROUND, "sample": 3, "keep": 1})
    assert main([*call_, "--seeds", "3"]) == 2
    assert "The folder out has a search of other settings (rounds.1.keep is 1, not 2): choose another" in capsys.readouterr().err


def test_preparing_again_changes_nothing(photos):
    first = prepare({"source": "folder", "path": "photos"}, "data")
    before = {path: path.read_bytes() for path in Path("data").iterdir()}
    assert prepare({"source": "folder", "path": "photos"}, "data") == first
    assert {path: path.read_bytes() for path in Path("data").iterdir()} == before
    draw(photos / "a" / "new.png", 99)
    assert prepare({"source": "folder", "path": "photos"}, "data") != first


@pytest.mark.parametrize("change", ["code", "list"])
def test_seeds_of_one_folder_are_of_the_same_code_and_cells(photos, capsys, change):
    Path("mine.py").write_text("from tenas import Measure\nMEASURE = Measure('mine', lambda network, images: len(images))\n")
    archs = [genotype.arch for _, genotype in zip(range(4), get_space("nas-bench-201").genotypes(), strict=False)]
    Path("cells.csv").write_text("\n".join(["arch", *archs, ""]))
    once = ROUND["measures"]["naswot"]
    name = preset({**ROUND, "sample": "cells.csv", "keep": 1, "measures": {"mine.py:MEASURE": once}})
    arguments = ["search", "--data", "digits", "--preset", name, "--out", "out"]
    assert main(arguments) == 0
    assert main([*arguments, "--seeds", "1"]) == 0
    if change == "list":
        Path("cells.csv").write_text("\n".join(["arch", *reversed(archs), ""]))
    else:
        Path("mine.py").write_text(Path("mine.py").read_text() + "# another\n")
    said = call("tenas", *arguments, "--seeds", "2", cwd=photos.parent)
    assert said.returncode == 2
    what = "code of round 1" if change == "code" else "cells than those in cells.csv"
    assert f"Seed 0 in out was searched with other {what}: choose another folder" in said.stdout


def test_seeds_of_one_folder_are_of_the_same_latencies(photos, capsys):
    archs = [genotype.arch for _, genotype in zip(range(40), get_space("nas-bench-201").genotypes(), strict=False)]

    def write(*values: float) -> None:
        rows = [f"{arch},{values[i % len(values)]}" for i, arch in enumerate(archs)]
        Path("latencies.csv").write_text("\n".join(["arch,ms", *rows, ""]))

    limit = ["--limit", "latency=latencies.csv:ms:2"]
    write(1, 3)
    assert search(*limit) == 0
    write(2, 3)
    before = Path("out/limits.json").read_bytes()
    assert search(*limit, "--seeds", "1") == 2
    assert "Seed 0 in out was searched with other latencies than those in latencies.csv" in capsys.readouterr().err
    assert Path("out/limits.json").read_bytes() == before
    assert search(*limit, "--seeds", "0", "1") == 0
    assert audit("out").faults == {}


def test_rounds_of_different_images_are_refused(photos):
    def write(round: int, shard: int, digest: str) -> None:
        record = layout.path(layout.SCORES_RECORD, "run", seed=0, round=round, shard=shard)
        write_json(record, {"shard": f"{shard}/1", "inputs": {"data/images.npy": digest * 64}})

    write_json(Path("run/search.json"), {"rounds": [{}, {}]})
    for round, shard, digest in ((1, 1, "1"), (2, 1, "1"), (2, 2, "2"), (3, 1, "2")):
        write(round, shard, digest)
    # Another shard of a round, and another round, are left from an earlier search.
    check_same_origins("run", [0])
    write(2, 1, "2")
    with pytest.raises(TenasError, match=r"Measurements of seed 0 are of different images .*: search it again"):
        check_same_origins("run", [0])


def test_images_that_are_prepared_anew_during_a_search_end_it(photos, capsys, monkeypatch):
    prepare({"source": "folder", "path": "photos"}, "data")
    monkeypatch.setitem(stages._ROUNDS, "cells", again := stages._cells)

    def interrupted(state, round, before):
        if round.number == 2:
            draw(photos / "a" / "new.png", 99)
            prepare({"source": "folder", "path": "photos"}, "data")
        return again(state, round, before)

    monkeypatch.setitem(stages._ROUNDS, "cells", interrupted)
    name = preset(ROUND, {key: ROUND[key] for key in ("kind", "measures")} | {"keep": 1})
    assert main(["search", "--data", "data", "--preset", name, "--out", "out"]) == 2
    assert "The images in data were prepared anew during the search" in capsys.readouterr().err


def search(*arguments: str) -> int:
    return main(["search", "--data", "photos", "--preset", preset(ROUND), "--out", "out", *arguments])


def test_seeds_of_one_folder_are_of_the_same_images(photos, capsys):
    assert search() == 0
    draw(photos / "a" / "new.png", 99)
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert search("--seeds", "1") == 2
    assert "Seed 0 in out was searched with other images" in capsys.readouterr().err
    # Images prepared elsewhere are others, too.
    prepare({"source": "folder", "path": "photos"}, "data")
    assert main(["search", "--data", "data", "--preset", "preset.yaml", "--out", "out", "--seeds", "1"]) == 2
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
    # All seeds at once are searched again.
    assert search("--seeds", "0", "1") == 0
    assert audit("out").faults == {}


def test_a_copied_seed_is_none(photos, capsys):
    """Its cell would count twice."""
    assert search() == 0
    shutil.copytree("out/seed0", "out/seed7")
    capsys.readouterr()
    for command in (["show", "out"], ["plot", "out"]):
        assert main(command) == 2
        assert "The results in out/seed7 are those of seed 0, copied or renamed" in capsys.readouterr().err
    shutil.rmtree("out/seed7")
    assert main(["show", "out"]) == 0


def test_seeds_of_one_folder_are_of_the_same_images_in_python(tmp_path):
    def searched(seed: int, images: np.ndarray) -> None:
        tenas.search(
            "nas-bench-201", images, seed=seed, changes={"rounds": [ROUND]}, progress=False, out=tmp_path, trainings="none"
        )

    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    searched(0, images)
    with pytest.raises(TenasError, match="has other images, of searches with other seeds"):
        searched(1, 255 - images)
    searched(1, images)
    assert audit(tmp_path).faults == {}


def test_seeds_of_one_folder_are_looked_up_in_the_same_table(photos, capsys):
    rounds = [ROUND, {"kind": "training", "keep": 1, "column": "cifar10_valid"}]
    call_ = ["search", "--data", "digits", "--preset", preset(*rounds), "--trainings", "table:cifar10_valid"]
    call_ += ["--out", "out"]
    assert main(call_) == 0, capsys.readouterr().err
    found = read_json(layout.path(layout.FINALISTS, "out", seed=0, round=2), "finalists")
    rows = ["arch,cifar10_valid", *(f"{cell['arch']},{i}" for i, cell in enumerate(found["cells"]))]
    Path("other.csv").write_text("\n".join(rows) + "\n")
    capsys.readouterr()
    assert main([*call_, "--seeds", "1", "--table", "other.csv"]) == 2
    assert "Seed 0 in out was searched with other accuracies than those in other.csv" in capsys.readouterr().err


def test_finalists_are_trained_on_the_images_that_were_searched_on(photos, capsys):
    prepare({"source": "folder", "path": "photos"}, "data")
    call_ = ["search", "--data", "data", "--preset", preset(ROUND, TRAINING), "--out", "out"]
    draw(photos / "a" / "new.png", 99)
    assert main(call_) == 2
    said = capsys.readouterr().err
    assert "The images of photos have changed since the search's sample was drawn from them" in said
    assert not list(Path("out").rglob("metrics.json"))
    (photos / "a" / "new.png").unlink()
    assert main(call_) == 0
    assert audit("out").faults == {}
    # The same holds for a retraining in the workflow.
    protocol = yaml.safe_load((ROOT / "config/retrain/digits.yaml").read_text()) | {"channels": 2, "epochs": 1, "batch": 16}
    write_json(Path("retrain.json"), {"preset": "digits", "dataset": {"source": "folder", "path": "photos"}, **protocol})
    draw(photos / "a" / "new.png", 99)
    genotype = "out/seed0/genotype.json"
    retrain = ["retrain", "--settings", "retrain.json", "--genotype", genotype, "--seed", "0", "--out", "trained"]
    assert main([*retrain, "--card", "data/card.json"]) == 2
    assert "have changed since" in capsys.readouterr().err


def test_an_audit_says_that_the_images_have_changed(photos):
    assert search() == 0
    CHANGES["another"](photos)
    assert audit("out").faults == {Path("photos"): ["has other images than those that out/data/card.json was drawn from"]}
    photos.rename("elsewhere")
    found = audit("out")
    assert found.faults == {}
    assert "photos, which the images were drawn from, is not here: it was not checked." in found.notes


@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        (layout.SCORES_RECORD, lambda value: value["inputs"].update({"out/data/images.npy": "0" * 64})),
        (layout.LOOKUP, lambda value: value["provenance"].update(inputs={"other.parquet": "0" * 64})),
        (layout.RETRAIN_METRICS, lambda value: value["provenance"]["data_sha256"].update(test="0" * 64)),
    ],
)
def test_seeds_of_different_origins_have_no_mean(tmp_path, pattern, change):
    for seed in (0, 1):
        records = {
            layout.SCORES_RECORD: {"inputs": {"out/data/images.npy": "1" * 64}},
            layout.LOOKUP: {"provenance": {"inputs": {"table.parquet": "2" * 64}}},
            layout.RETRAIN_METRICS: {"provenance": {"data_sha256": {"train": f"{seed}" * 64, "test": "3" * 64}}},
        }
        for name, record in records.items():
            if seed and name == pattern:
                change(record)
            write_json(layout.path(name, tmp_path, seed=seed, round=1, shard=1), record)
        write_json(layout.path(layout.GENOTYPE, tmp_path, seed=seed), {"arch": "x"})
    write_json(tmp_path / "search.json", search_settings("nas-bench-201", "released"))
    check_same_origins(tmp_path, [0])
    for read in (lambda: check_same_origins(tmp_path, [0, 1]), lambda: show(tmp_path)):
        with pytest.raises(TenasError, match=r"The seeds 0 and 1 of .* are of different .* and cannot be compared"):
            read()
        with pytest.raises(TenasError, match=r"The seeds 0 and 1 of .* are of different"):
            summarise(tmp_path, [0, 1])


@pytest.mark.slow
def test_the_workflow_prepares_a_folder_again_that_has_changed(photos):
    run = {"space": "nas-bench-201", "dataset": "photos", "preset": preset(ROUND), "seeds": [0]}
    config = {"datasets": {"photos": {"source": "folder", "path": "photos"}}, "runs": {"mine": run}}
    Path("mine.yaml").write_text(json.dumps(config))

    def workflow(*more: str) -> str:
        return succeed(snakemake(photos.parent, "--configfile", "mine.yaml", *more))

    def planned() -> set[str]:
        return set(re.findall(r"^rule (\w+):", workflow("--dry-run"), re.MULTILINE))

    workflow()
    assert planned() == set()
    draw(photos / "a" / "new.png", 99)
    assert {"prepare", "score", "shortlist"} <= planned()
    # Without its folder a finished run can still be looked at.
    photos.rename("elsewhere")
    assert planned() == set()
    Path("elsewhere").rename(photos)
    workflow()
    assert planned() == set()
    assert succeed(call("tenas", "audit", "results/mine", cwd=photos.parent))


@pytest.mark.slow
def test_results_without_snakemakes_notes_are_those_of_the_configuration_or_refused(photos):
    """Results that were copied: Snakemake has no notes of their settings and code, and would take them as they are."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez("mine.npz", images=images, labels=np.arange(40) % 2)
    own = (
        "from torch import nn\nfrom tenas import ChainSpace, Layer\n"
        "SPACE = ChainSpace('tiny', {'skip': lambda i, o, s: nn.Identity(), 'conv': lambda i, o, s: nn.Conv2d(i, o, 3, s, 1)},"
        " [Layer(), Layer()], channels=4)\n"
    )
    Path("own.py").write_text(own)
    archs = [f"{one}-{other}" for one in ("skip", "conv") for other in ("skip", "conv")]
    rows = (f"{arch},5{number}\n" for number, arch in enumerate(archs))
    Path("table.csv").write_text("".join(["arch,accuracy\n", *rows]))
    run = {"space": "own.py:SPACE", "dataset": "mine", "preset": preset(ROUND), "seeds": [0]}
    config = {"datasets": {"mine": {"source": "npz", "path": "mine.npz"}}, "runs": {"mine": run}}
    Path("mine.yaml").write_text(json.dumps(config | {"benchmark": {"own.py:SPACE": "table.csv"}}))

    def workflow() -> str:
        return snakemake(photos.parent, "--configfile", "mine.yaml").stdout

    said = workflow()
    assert "(100%) done" in said, said
    assert "benchmark  accuracy 5" in succeed(call("tenas", "show", "results/mine", cwd=photos.parent))
    # The images themselves are gone: nothing to be done, and nothing lost.
    Path("mine.npz").rename("elsewhere.npz")
    assert "Nothing to be done" in workflow()
    Path("elsewhere.npz").rename("mine.npz")
    Path(".snakemake").rename("notes")
    assert "Nothing to be done" in workflow()
    shutil.rmtree(".snakemake")
    # Notes of others are none of this run.
    Path(".snakemake/metadata").mkdir(parents=True)
    Path(".snakemake/metadata/b3RoZXI=").touch()
    preset(ROUND | {"keep": 3})
    refused = workflow()
    assert "results/mine/search.json is not of this configuration and code" in refused
    assert "or remove results/mine." in refused
    preset(ROUND)
    Path("own.py").write_text(own + "# another version\n")
    assert "results/mine/seed0/round1/scores/1.json is not of this configuration and code" in workflow()
    Path("own.py").write_text(own)
    Path("data").rename("data elsewhere")
    assert "or remove results/mine." in workflow()
    Path("data elsewhere").rename("data")
    assert "Nothing to be done" in workflow()
    shutil.rmtree(".snakemake")
    Path("notes").rename(".snakemake")
    Path("own.py").write_text(own + "# another version\n")
    said = workflow()
    assert "(100%) done" in said, said
