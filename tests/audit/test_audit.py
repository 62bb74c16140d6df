"""The audit of a run that the workflow has made: clean as it is, and not after any one byte of it was changed."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.runs import TINY, call, changed, expected_files, snakemake, succeed, write_config

from tenas.audit import audit
from tenas.cli import main
from tenas.files import read_json, write_csv, write_json
from tenas.provenance import sealed

RUN = Path("results/digits")
SEED = RUN / "seed0"


@pytest.fixture
def copy(finished, tmp_path, monkeypatch) -> Path:
    """A copy of the finished run, as the working directory."""
    for name in ("results", "data"):
        shutil.copytree(finished / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def faults() -> dict[str, list[str]]:
    return {path.as_posix(): found for path, found in audit(RUN).faults.items()}


def test_a_finished_run_is_clean(copy, capsys):
    before = files_below(copy)
    assert main(["audit", str(RUN)]) == 0
    printed = capsys.readouterr().out
    assert files_below(copy) == before
    # All of the run but its pictures and page, of which nothing is recorded; images, labels, card; the table.
    files = {name for name in expected_files(TINY, "digits", copy) if not name.startswith(("figures/", "overview.html"))}
    assert printed.splitlines()[-1] == f"{len(files) + 3 + 1} files, all as recorded"
    assert "note" not in printed
    assert f"genotype {read_json(SEED / 'genotype.json', 'genotype')['arch']}" in printed
    assert str(read_json("data/digits/card.json", "card")["sha256"]) in printed


def test_the_trail_leads_to_the_rows(copy, capsys):
    """Each pruning once, and the lines that it names are those of its trial and of the whole network."""
    assert main(["audit", str(RUN)]) == 0
    printed = capsys.readouterr().out
    decisions = re.findall(
        r"^    (\d)<-(\d) loses (\w+) .*linear_regions (\S+) \+- "
        r".*; rows (\d).csv:(\d+)-(\d+), whole (\d).csv:(\d+)-(\d+)$",
        printed,
        re.MULTILINE,
    )
    assert len(decisions) == 18
    for number, (target, source, operator, change, *places) in enumerate(decisions):
        folder = SEED / f"round{number // 6 + 1}" / "scores"
        rows, whole = (
            [line.split(",") for line in (folder / f"{shard}.csv").read_text().splitlines()[int(first) - 1 : int(last)]]
            for shard, first, last in (places[:3], places[3:])
        )
        assert {tuple(row[4:7]) for row in rows} == {(target, source, operator)}
        assert {row[1] for row in whole} == {"0"}
        assert len(rows) == len(whole) == 4
        # The change once more from these rows: the mean difference of logarithms (the preset's).
        pairs = [(float(w[9]), float(r[9])) for w, r in zip(whole, rows, strict=True) if w[7] == "linear_regions"]
        assert float(change) == pytest.approx(np.mean([np.log(w) - np.log(r) for w, r in pairs]), rel=1e-3)


EDITED = [
    RUN / "search.json", RUN / "retrain.json", RUN / "summary.csv", SEED / "round0/mask.json", SEED / "round1/scores/2.csv",
    SEED / "round3/scores/1.csv", SEED / "round2/scores/1.json", SEED / "round1/ranking.csv", SEED / "round3/ranking.csv",
    SEED / "round2/mask.json", SEED / "round3/mask.json", SEED / "genotype.json", SEED / "genotype.svg",
    SEED / "retrain/network.pt", SEED / "retrain/history.csv", SEED / "retrain/metrics.json", SEED / "export/network.pt2",
    SEED / "export/network.onnx", SEED / "export/export.json", RUN / "metrics.json", "data/digits/images.npy",
    "data/digits/labels.npy", "data/digits/card.json",
]  # fmt: skip


@pytest.mark.parametrize("path", EDITED, ids=str)
def test_a_changed_byte_is_found(copy, path, capsys):
    """Wherever in the file it is: at its start, in its middle, just before its end."""
    path = Path(path)
    content = path.read_bytes()
    for place in (0, len(content) // 3, len(content) // 2, len(content) - 3):
        # A digit for a digit, a letter for a letter: what is left is a file of the same form, mostly.
        other = {b"0": b"1", b"9": b"8"}.get(content[place : place + 1], bytes([content[place] ^ 1]))
        path.write_bytes(content[:place] + other + content[place + 1 :])
        assert main(["audit", str(RUN)]) == 2, place
        error = capsys.readouterr().err
        assert error.startswith("tenas: Not everything is as it was recorded")
        assert re.search(rf"^  {re.escape(str(path))} .*\.$", error, re.MULTILINE), error
    path.write_bytes(content)
    assert main(["audit", str(RUN)]) == 0


def test_a_decision_changed_by_hand_is_found_where_it_is(copy):
    """A mask that keeps another operator, laid out as ever: it's no longer what the ranking leads to, and nobody's input."""
    path = SEED / "round3/mask.json"
    mask = read_json(path, "mask")
    edge = mask["active"]["cell"][0]
    edge[:] = edge[1:] + edge[:1]
    write_json(path, mask)
    assert faults() == {
        str(path): [
            "is not the mask that its ranking leads to",
            f"is not the file whose SHA-256 is recorded in {SEED / 'genotype.json'}",
        ]
    }


def test_all_faults_are_listed(copy):
    first, second = SEED / "round1/scores/1.csv", SEED / "round3/ranking.csv"
    text = first.read_text()
    first.write_text(text.replace(",ntk_condition_number,0,", ",ntk_condition_number,0,1", 1))
    second.write_text(second.read_text().replace(",1,", ",0,", 1))
    (SEED / "benchmark.json").write_text((SEED / "benchmark.json").read_text().replace("skip_connect", "none"))
    found = faults()
    assert {str(first), str(second), str(SEED / "benchmark.json")} <= found.keys()
    assert any("SHA-256" in what for what in found[str(first)])


def test_a_missing_shard_and_a_swapped_row_are_found(copy):
    folder = SEED / "round2/scores"
    one, two = folder / "1.csv", folder / "2.csv"
    texts = one.read_text(), two.read_text()
    one.unlink()
    assert "cannot be read (No such file or directory)" in faults()[str(one)]
    one.write_text(texts[0])
    assert faults() == {}
    rows = [text.splitlines(keepends=True) for text in texts]
    rows[0][3], rows[1][3] = rows[1][3], rows[0][3]
    one.write_text("".join(rows[0]))
    two.write_text("".join(rows[1]))
    found = faults()
    assert any(re.match(r"has trial 1, .* in line 4, where trial 0, ", what) for what in found[str(one)])
    assert any(re.match(r"has trial 0, .* in line 4, where trial 1, ", what) for what in found[str(two)])
    for shard, path in enumerate((one, two)):
        path.write_text(texts[shard])
    (folder / "2.json").unlink()
    assert str(folder / "2.json") in faults()


def test_scores_of_another_seed_are_found(copy):
    """Whole files of another search, each as it was recorded, but not here."""
    shutil.copytree(SEED, RUN / "seed1")
    found = faults()
    records = {f"{RUN}/seed1/round{r}/scores/{s}.json" for r in (1, 2, 3) for s in (1, 2)}
    assert set(found) == {*records, f"{RUN}/seed1/retrain/metrics.json"}
    assert all(what == ["has 0 for 'seed', where 1 belongs"] for what in found.values())


def test_other_images_are_found(copy):
    """Prepared again, with a card of their own: what was measured was measured on others."""
    dataset = json.dumps({"source": "digits", "images": 200, "seed": 1})
    assert main(["prepare", dataset, "--out", "data/digits"]) == 0
    records = re.escape(f"is not the file whose SHA-256 is recorded in {SEED}/round1/scores/1.json")
    assert any(re.match(records, what) for what in faults()["data/digits/images.npy"])


def test_other_code_is_a_note_and_no_fault(copy, capsys):
    """A genotype's record may be of another version: what follows from it is looked at all the same."""
    path = SEED / "round3/mask.json"
    mask, genotype = read_json(path, "mask"), read_json(SEED / "genotype.json", "genotype")
    mask["made_by"]["code_sha256"] = "0" * 64
    write_json(path, mask)
    assert any("recorded in" in what for what in faults()[str(path)])
    from tenas.files import sha256

    genotype["made_by"]["inputs"]["round3/mask.json"] = sha256(path)
    write_json(SEED / "genotype.json", genotype)
    for later in ("retrain", "export", "summary.csv"):
        left = RUN / later if later.endswith("csv") else SEED / later
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    capsys.readouterr()
    assert main(["audit", str(RUN)]) == 0
    assert "note: 1 file of decisions made by another version of the code (000000000000)." in capsys.readouterr().out


def test_values_that_no_program_writes_are_faults_and_no_traceback(copy):
    """A name too long for the system, and a number too long for Python, in files whose hashes were made again."""
    record, scores = SEED / "round1/scores/1.json", SEED / "round1/scores/1.csv"
    value = read_json(record, "record")
    del value["record_sha256"]
    write_json(record, sealed(value | {"inputs": value["inputs"] | {"x" * 5000: "0" * 64}}))
    assert any("recorded in" in what or "names other inputs" in what for what in faults()[str(record)])
    with scores.open() as file:
        first, *others = csv.DictReader(file)
    write_csv(scores, [*first], [first | {"trial": "9" * 5000}, *others])
    assert any("in line 2, where" in what for what in faults()[str(scores)])


def test_another_processor_is_a_note_and_no_fault(copy, capsys):
    """Shards of a round may have been measured on machines of different kinds, and some records name none."""
    named = (
        {"processor": "Another", "instructions": "DEFAULT"},
        {},
        {"processor": "Some", "instructions": "AVX2", "gpu": "Card 9"},
    )
    for number, path in enumerate(sorted(SEED.glob("round*/scores/*.json"))):
        record = read_json(path, "record")
        assert record.pop("record_sha256")
        assert record["machine"].pop("processor")
        assert record["machine"].pop("instructions")
        record["machine"] |= named[number % 3]
        write_json(path, sealed(record))
    assert main(["audit", str(RUN)]) == 0
    notes = re.findall(r"^note: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert notes == ["The scores are of 2 kinds of processor, whose last bits may differ: Another, DEFAULT (2); Card 9 (2)."]


@pytest.mark.long
def test_a_run_of_other_shards_and_what_an_earlier_split_left(finished, tmp_path, monkeypatch, capsys):
    # Three operators less on each edge at once: one round.
    write_config(tmp_path, changed(TINY | {"shards": 3}, search=TINY["runs"]["digits"]["search"] | {"prune": 3}))
    shutil.copytree(finished / "data", tmp_path / "data")
    succeed(snakemake(tmp_path, SEED / "genotype.json"))
    monkeypatch.chdir(tmp_path)
    assert main(["audit", str(RUN)]) == 0
    assert "1.csv (36), 2.csv (32), 3.csv (32)" in capsys.readouterr().out
    (SEED / "round1/scores/4.csv").write_text("left over")
    assert main(["audit", str(RUN)]) == 0
    assert f"note: {SEED}/round1/scores/4.csv is no part of the scores" in capsys.readouterr().out


def test_a_search_in_one_process_is_clean_too(copy, capsys):
    settings = read_json(RUN / "search.json", "settings")
    preset = {key: settings[key] for key in ("exclude", "rounds")}
    Path("tiny.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    arguments = ("--preset", "tiny.yaml", "--data", copy / "data/digits", "--device", "cpu", "--seeds", "0", "--out", "found")
    succeed(call("tenas", "search", *arguments, cwd=copy))
    assert main(["audit", "found"]) == 0
    assert "files, all as recorded" in capsys.readouterr().out
    # Images that have moved are named.
    Path("data").rename("elsewhere")
    assert main(["audit", "found"]) == 2
    assert "images.npy cannot be read" in capsys.readouterr().err
    assert main(["audit", "found", "--data", "elsewhere/digits"]) == 0


def test_what_cannot_be_audited_is_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "nowhere"]) == 2
    assert (
        capsys.readouterr().err
        == "tenas: There is nothing to audit in nowhere: it has no folder of a seed, and it is no study.\n"
    )
    Path("run/seed0").mkdir(parents=True)
    assert main(["audit", "run"]) == 2
    error = capsys.readouterr().err
    assert "run/search.json cannot be read (No such file or directory)" in error
    assert "Traceback" not in error
