"""Runs packed into one file: the same bytes each time, audited with nothing else at hand, safe to open whoever made it."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT

from tenas.audit import archive as packing
from tenas.audit import audit
from tenas.audit.archive import LIST, pack, unpacked
from tenas.cli import main
from tenas.errors import TenasError
from tenas.locks import lock_folder
from tenas.provenance import commit_of_code, sealed

RUN = Path("results/digits")
SEED = RUN / "seed0"


@pytest.fixture
def copy(finished_default, tmp_path, monkeypatch) -> Path:
    """A copy of the finished run, as the working directory."""
    folder = tmp_path / "ran"
    for name in ("results", "data"):
        shutil.copytree(finished_default / name, folder / name)
    monkeypatch.chdir(folder)
    return folder


def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder the working directory that has nothing of the run."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}


@pytest.mark.parametrize("name", [LIST, "runs/x/search.json"])
def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr("tenas.files.LARGE", 2**16)
    monkeypatch.setattr(packing, "MOST_FACTOR", 10)
    digest = hashlib.sha256(bytes(2**22)).hexdigest()
    listed = sealed({"format": 1, "commit": None, "runs": {}, "files": {name: digest}, "left_out": {}})
    with tarfile.open(tmp_path / "bomb.tar.xz", "w:xz") as archive:
        for member, content in {LIST: json.dumps(listed).encode(), name: bytes(2**22)}.items():
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(TenasError), unpacked(tmp_path / "bomb.tar.xz"):
        pass


@pytest.mark.parametrize("commit", [3, {"sha1": "a"}, {"sha1": 1, "changed": True}, {"sha1": "a", "changed": "no"}])
def test_an_archive_of_no_commit_is_refused(tmp_path, commit):
    content = json.dumps(sealed({"format": 1, "commit": commit, "runs": {}, "files": {}, "left_out": {}})).encode()
    with tarfile.open(tmp_path / "made.tar.xz", "w:xz") as archive:
        entry = tarfile.TarInfo(LIST)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(TenasError, match="for the commit of the code"), unpacked(tmp_path / "made.tar.xz"):
        pass


def test_a_run_is_audited_from_its_archive_alone(copy, tmp_path, monkeypatch, capsys):
    assert main(["audit", str(RUN)]) == 0
    *followed, whole = capsys.readouterr().out.splitlines()
    out = tmp_path / "runs.tar.xz"
    assert main(["archive", str(RUN), "--out", str(out)]) == 0
    assert hashlib.sha256(out.read_bytes()).hexdigest() in capsys.readouterr().out
    assert out.stat().st_size < 20_000
    kept = members(out)
    # All text of the run but that of drawings, and the card of the images.
    texts = {path.relative_to(RUN).as_posix() for path in RUN.rglob("*") if path.suffix in (".csv", ".json")}
    texts = {name for name in texts if not name.startswith("figures/")}
    (card,) = [name for name in kept if name.startswith("data/")]
    assert set(kept) == {LIST, card, *(f"runs/digits/{name}" for name in texts)}
    assert kept["runs/digits/seed0/round1/scores/1.csv"] == (SEED / "round1/scores/1.csv").read_bytes()
    elsewhere(tmp_path, monkeypatch)
    assert main(["audit", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # The same decisions from the same rows.
    decisions = [line for line in followed if line.startswith("    keeps")]
    assert [line for line in lines if line.startswith("    keeps")] == decisions
    assert len(decisions) == 5 + 2 + 2 + 1
    note = "5 files of the run digits are not in the archive (images.npy, labels.npy, network.onnx, network.pt, network.pt2)"
    assert len([line for line in lines if note in line]) == 1
    assert not [line for line in lines if str(tmp_path / "ran") in line or "/tenas-" in line]
    # Without the drawing, images, labels, network and its two exports, and checkpoints; the table's file is the package's own.
    checkpoints = list((copy / RUN).rglob("checkpoint.pt"))
    assert int(lines[-1].split()[0]) == int(whole.split()[0]) - 6 - len(checkpoints)
    assert os.listdir(".") == []


def test_equal_files_are_equal_bytes(copy, tmp_path):
    pack([RUN], tmp_path / "one.tar.xz")
    for number, path in enumerate(sorted(copy.rglob("*"))):
        os.utime(path, (number, number))
        path.chmod(0o700 if path.is_dir() else 0o600)
    (SEED / "round1/scores/.9.partial").write_text("left")
    (copy / "results").rename(copy / "moved")
    pack([copy / "moved/digits"], tmp_path / "two.tar.xz")
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()
    with tarfile.open(tmp_path / "one.tar.xz") as archive:
        assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) for entry in archive} == {(0, 0, 0, "", 0o644)}


def test_what_was_edited_before_is_found_in_the_archive(copy, tmp_path, monkeypatch):
    scores, network = SEED / "round1/scores/1.csv", SEED / "retrain/network.pt"
    scores.write_text(re.sub(r"\d\n", lambda end: f"{(int(end[0][0]) + 1) % 10}\n", scores.read_text(), count=1))
    network.write_bytes(network.read_bytes() + b"\0")
    pack([RUN], tmp_path / "runs.tar.xz")
    elsewhere(tmp_path, monkeypatch)
    faults = {str(path): found for path, found in audit(tmp_path / "runs.tar.xz").faults.items()}
    assert any("is not the file whose SHA-256 is recorded" in what for what in faults["runs/digits/seed0/round1/scores/1.csv"])
    assert "SHA-256" in " ".join(faults["runs/digits/seed0/retrain/network.pt"])


def test_images_that_are_here_are_looked_at(copy, tmp_path, monkeypatch, capsys):
    """Those of another draw, with --data: the records are of others."""
    pack([RUN], tmp_path / "runs.tar.xz")
    data = copy / "data/digits"
    elsewhere(tmp_path, monkeypatch)
    assert main(["audit", str(tmp_path / "runs.tar.xz"), "--data", str(data)]) == 0
    assert "(network.onnx, network.pt, network.pt2)" in capsys.readouterr().out
    with (data / "images.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    assert main(["audit", str(tmp_path / "runs.tar.xz"), "--data", str(data)]) == 2
    assert "images.npy is not the file whose SHA-256 is recorded" in capsys.readouterr().err


@pytest.mark.long
def test_a_search_and_a_study_in_one_archive(funnel, tmp_path, monkeypatch):
    monkeypatch.chdir(funnel)
    listed = pack(["results/funnel", "results/study"], tmp_path / "both.tar.xz")
    assert list(listed["runs"]) == ["funnel", "study"]
    assert len(set(listed["runs"].values())) == 1
    elsewhere(tmp_path, monkeypatch)
    found = audit(tmp_path / "both.tar.xz")
    assert found.faults == {}
    assert any("The table of the study is not here" in note for note in found.notes)
    assert audit(tmp_path / "both.tar.xz", table=funnel / "table.csv").faults == {}


@pytest.mark.long
def test_the_records_behind_the_published_figures_are_sound(tmp_path, monkeypatch):
    """Searches by one commit: every decision is as recorded, and the claims page follows from them."""
    monkeypatch.chdir(tmp_path)
    records = ROOT / "docs/searches.tar.xz"
    found = audit(records)
    assert found.faults == {}
    assert found.files > 1400
    with tarfile.open(records) as archive:
        archive.extractall("records", filter="data")
    runs = sorted(os.listdir("records/runs"))
    command = ["claims", str(ROOT / "config/claims.yaml"), "--results", "records/runs", "--tested", *runs]
    assert main([*command, "--out", "claims.json", "--page", "claims.md"]) == 0
    assert Path("claims.md").read_text() == (ROOT / "docs/claims.md").read_text()


def test_the_commit_is_that_of_the_code():
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode or not (ROOT / ".git").exists():
        assert commit_of_code() is None
    else:
        assert commit_of_code()["sha1"] == head.stdout.strip()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda: shutil.copytree(RUN, "other/digits"), "Two of the runs are named 'digits'"),
        (lambda: Path("other/digits").mkdir(parents=True), r"it has neither search\.json nor study\.json"),
        (lambda: shutil.rmtree("data"), r"The images of results/digits are not in data/digits"),
        (lambda: [path.unlink() for path in SEED.glob("round*/scores/*.json")], "no record of scores there"),
    ],
)
def test_what_cannot_be_packed_is_a_sentence_and_leaves_nothing(copy, tmp_path, change, sentence):
    change()
    runs = [RUN, *Path("other").glob("*")]
    with pytest.raises(TenasError, match=sentence):
        pack(runs, tmp_path / "runs.tar.xz")
    assert not list(tmp_path.glob("*.xz"))


# --- archives of others


def save(path: Path, listed: dict | bytes, entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    content = listed if isinstance(listed, bytes) else json.dumps(listed).encode()
    with tarfile.open(path, "w:xz") as archive:
        for entry, data in [(tarfile.TarInfo(LIST), content), *entries]:
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def plain(name: str, data: bytes = b"{}") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), data


def link(name: str, to: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, to
    return entry, b""


NAME = "runs/r/search.json"


def listing(*names: str, run: str = "r", data: str = "data/d", **more: str) -> dict:
    digest = hashlib.sha256(b"{}").hexdigest()
    return sealed(
        {"format": 1, "commit": None, "runs": {run: data}, "files": dict.fromkeys(names, digest), "left_out": {}} | more
    )


OUTSIDE = [
    "../out.json",
    "runs/../../out.json",
    "/tmp/tenas-out.json",
    "runs//r/x.json",
    "other/x.json",
    "runs",
    "runs\\..\\x",
    "./runs/x",
]
HOSTILE: dict[str, tuple[Callable[[], dict | bytes], list, str]] = {
    **{name: (lambda name=name: listing(name), [plain(name)], "names files outside of it") for name in OUTSIDE},
    "data outside": (lambda: listing(NAME, data="../data"), [plain(NAME)], "names files outside of it"),
    "run in a run": (lambda: listing(NAME, run="a/b"), [plain(NAME)], "names files outside of it"),
    "run outside": (lambda: listing(NAME, run="../.."), [plain(NAME)], "names files outside of it"),
    "left out outside": (lambda: listing(NAME, left_out={"../x": "a"}), [plain(NAME)], "names files outside of it"),
    "more than the list": (lambda: listing(NAME), [plain(NAME), plain("runs/r/more.json")], "which is not in its list"),
    "twice": (lambda: listing(NAME), [plain(NAME), plain(NAME)], "which is not in its list"),
    "a link": (lambda: listing(NAME), [link(NAME, "/etc/hostname", tarfile.SYMTYPE)], "which is not in its list"),
    "a hard link": (lambda: listing(NAME), [link(NAME, LIST, tarfile.LNKTYPE)], "which is not in its list"),
    "a folder that is a link": (
        lambda: listing(NAME), [link("runs/r", "/tmp", tarfile.SYMTYPE), plain(NAME)], "which is not in its list",
    ),
    "a device": (lambda: listing(NAME), [link(NAME, "", tarfile.CHRTYPE)], "which is not in its list"),
    "less than the list": (lambda: listing(NAME, "runs/r/b.json"), [plain(NAME)], "lacks runs/r/b.json"),
    "other contents": (lambda: listing(NAME), [plain(NAME, b"[]")], "has a runs/r/search.json that differs"),
    "an edited list": (lambda: listing(NAME) | {"runs": {"s": "data/d"}}, [plain(NAME)], "its own hash differs"),
    "no list": (lambda: b"[]", [], "has the format None"),
    "no JSON": (lambda: b"{", [], "is not valid JSON"),
    "a later format": (lambda: {"format": 2}, [], "has the format 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_of_a_faulty_archive_is_used(name, tmp_path, monkeypatch):
    listed, entries, sentence = HOSTILE[name]
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    save(tmp_path / "archive.tar.xz", listed(), entries)
    with pytest.raises(TenasError, match=sentence), unpacked(tmp_path / "archive.tar.xz"):
        pass
    assert {path.name for path in tmp_path.rglob("*")} == {"temporary", "archive.tar.xz", lock_folder().name}
    assert not Path("/tmp/tenas-out.json").exists()


def test_a_damaged_archive_is_a_sentence(copy, tmp_path, capsys):
    pack([RUN], tmp_path / "runs.tar.xz")
    content = (tmp_path / "runs.tar.xz").read_bytes()
    turned = bytearray(content)
    turned[len(content) // 2] ^= 1
    for number, damaged in enumerate(
        (content[: len(content) // 2], content[:-400], bytes(turned), b"", b"results", b"\0" * 2000)
    ):
        path = tmp_path / f"{number}.tar.xz"
        path.write_bytes(damaged)
        assert main(["audit", str(path)]) == 2, number
        error = capsys.readouterr().err
        assert error.startswith(f"tenas: The archive {path}"), error
        assert "Traceback" not in error
