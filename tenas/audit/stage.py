"""The audit of a run: reads all of its files, writes none."""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tenas.audit.ledger import Ledger, mapping
from tenas.errors import TenasError
from tenas.files import format_csv, read_csv, read_table
from tenas.provenance import code_digest, input_path, sealed
from tenas.report import summarise
from tenas.search.draw import draw
from tenas.search.prune import rank_round
from tenas.search.stages import read_settings, search_rounds
from tenas.search.table import COLUMNS, Measurement, plan, read_scores
from tenas.spaces import Genotype, Mask, Round, get_space


class Audit(NamedTuple):
    """``trail``: lines for a reader, decision by decision. ``faults``: file -> what is wrong with it, in its own words.

    ``notes``: what is no fault, but should be known. ``files``: how many were read.
    """

    trail: list[str]
    notes: list[str]
    faults: dict[Path, list[str]]
    files: int


def audit(run: str | os.PathLike, data: str | os.PathLike | None = None) -> Audit:
    """Follow each genotype of a run back to the images.

    Takes every decision again (ranking and mask from the scores, genotype from the last mask), and compares bytes; looks at
    every hash, seed, round, shard and setting that is recorded. ``data``: folder of the prepared images; by default where the
    records say, from the working directory.

    Raises TenasError only when there is nothing to audit. It finds what was edited by hand, not a forgery: whoever changes a
    measurement and all that follows from it leaves no trace here.
    """
    return _Run(Path(run), None if data is None else Path(data)).audit()


class _Run:
    def __init__(self, run: Path, data: Path | None) -> None:
        self.run, self.data = run, data
        self.seeds = sorted(int(path.name[4:]) for path in run.glob("seed*") if re.fullmatch(r"seed\d+", path.name))
        if not self.seeds:
            raise TenasError(f"There is nothing to audit in {run}: it has no folder of a seed.")
        self.ledger = Ledger()
        self.trail: list[str] = []
        self.unhashed = 0  # scores whose record has no hash of them

    def audit(self) -> Audit:
        ledger, settings_file = self.ledger, self.run / "search.json"
        written = ledger.json(settings_file, "search settings")
        try:
            self.settings = read_settings(settings_file)
        except TenasError as error:
            # Without settings no decision can be taken again.
            ledger.fault(settings_file, f"is no search's settings: {error}".rstrip("."))
            return Audit([], [], ledger.faults, ledger.count)
        # Keys that a later version has filled in are not in what an earlier one recorded.
        self.recorded_settings = (self.settings, written)
        self.space, self.rounds = get_space(self.settings["space"]), search_rounds(self.settings)
        self.trail += [f"run {self.run}: {self.space.name}, preset {self.settings['preset']}"]
        self._images()
        genotypes = {seed: self._seed(seed) for seed in self.seeds}
        self._summary(genotypes)
        ledger.close()
        self._codes()
        return Audit(self.trail, ledger.notes, ledger.faults, ledger.count)

    # --- the images

    def _images(self) -> None:
        if self.data is None:
            self.data = self._recorded_data()
        if self.data is None:
            return
        card_file = self.data / "card.json"
        card = self.ledger.json(card_file, "data card")
        self.ledger.recorded(self.data / "images.npy", card.get("sha256"), card_file)
        if "labels_sha256" in card:
            self.ledger.recorded(self.data / "labels.npy", card["labels_sha256"], card_file)
        for name, digest in mapping(mapping(card.get("provenance")).get("inputs")).items():
            if Path(name).exists():
                self.ledger.recorded(Path(name), digest, card_file)
            else:
                self.ledger.notes.append(f"{name}, which the images were drawn from, is not here: its hash was not looked at.")
        self.trail.append(f"images {self.data}: {card.get('images')} of {card.get('source')}, SHA-256 {card.get('sha256')}")

    def _recorded_data(self) -> Path | None:
        """The folder of the images by the first record that names one."""
        for record in sorted(self.run.glob("seed*/round*/scores/*.json")):
            for name in mapping(self.ledger.json(record, "record of scores").get("inputs")):
                if Path(name).name == "images.npy":
                    return Path(name).parent
        return None

    # --- a seed: from its first mask to its genotype, and what was made of that

    def _seed(self, seed: int) -> Genotype | None:
        folder = self.run / f"seed{seed}"
        self.trail += ["", f"seed {seed}"]
        mask = self.space.full_mask(self.settings["exclude"])
        first = folder / "round0" / "mask.json"
        self._decision(first, "mask", mask.to_json(), [], "it is not the supernet that the settings start from")
        for round in self.rounds:
            mask = self._round(folder, seed, round, mask)
            if mask is None:
                # What comes after it can't be followed, but is not to be taken for audited either.
                self.trail.append(f"  round {round.number} cannot be followed")
                self.ledger.hash(folder / "genotype.json")
                return None
        return self._genotype(folder, mask)

    def _decision(self, path: Path, what: str, decided: Mapping, inputs: Sequence[Path], otherwise: str) -> None:
        """A JSON file that must be ``decided``, byte by byte, with a true record of what it follows from."""
        value = self.ledger.json(path, what)
        if not value:
            return
        made_by = value.get("made_by")
        if value != {**decided, "made_by": made_by}:
            self.ledger.fault(path, otherwise)
        made_by = mapping(made_by)
        self._same_settings(path, made_by.get("settings"))
        self.ledger.code(path, "decisions", made_by.get("code_sha256"))
        named = {"/".join(file.parts[-2:]): file for file in inputs}
        recorded = mapping(made_by.get("inputs"))
        self.ledger.equal(path, "inputs", list(recorded), list(named))
        for name, file in named.items():
            if name in recorded:
                self.ledger.recorded(file, recorded[name], path)

    def _same_settings(self, path: Path, recorded: object) -> None:
        if recorded not in self.recorded_settings:
            self.ledger.fault(path, f"was made with other settings than {self.run / 'search.json'} has")

    def _round(self, folder: Path, seed: int, round: Round, before: Mask) -> Mask | None:
        """Take the decisions of a round again; the mask that follows, None when there is none to go on from."""
        here = folder / f"round{round.number}"
        ranking, mask_file = here / "ranking.csv", here / "mask.json"
        mask_before = folder / f"round{round.number - 1}" / "mask.json"
        paths = self._scores(here, seed, round, mask_before)
        sound = all(map(self.ledger.sound, paths))
        try:
            values = read_scores(paths, self.settings, self.space, before, round)
        except TenasError as error:
            if sound:
                self.ledger.fault(here / "scores", f"cannot be ranked: {error}".rstrip("."))
            self.ledger.hash(ranking)
            return self._mask_as_it_is(mask_file)
        columns, rows, after = rank_round(self.settings, self.space, before, round, values)
        digest = self.ledger.hash(ranking)
        if digest is not None and ranking.read_bytes() != format_csv(columns, rows).encode():
            self.ledger.fault(ranking, "is not the ranking that its scores lead to")
        otherwise = "is not the mask that its ranking leads to"
        self._decision(mask_file, "mask", after.to_json(), [mask_before, ranking], otherwise)
        self._tell(round, rows, paths)
        # After edited scores the mask that was written is the likelier one: what follows is then judged by itself.
        return after if sound else self._mask_as_it_is(mask_file) or after

    def _mask_as_it_is(self, path: Path) -> Mask | None:
        try:
            return self.space.read_mask(path) if self.ledger.hash(path) else None
        except TenasError as error:
            self.ledger.fault(path, f"is damaged: {error}".rstrip("."))
            return None

    # --- the scores of a round

    def _scores(self, here: Path, seed: int, round: Round, mask_before: Path) -> list[Path]:
        """Look at each shard's scores and record. Gives the scores files that the round must have."""
        folder = here / "scores"
        shards = self._shards(folder)
        for shard in range(1, shards + 1):
            path, record_file = folder / f"{shard}.csv", folder / f"{shard}.json"
            record = self.ledger.json(record_file, "record of scores")
            expected = plan(self.settings, round.trials, (shard, shards))
            self._rows(path, expected)
            if record:
                self._record(record_file, record, seed, round, f"{shard}/{shards}", len(expected), mask_before)
        known = {f"{shard}.{kind}" for shard in range(1, shards + 1) for kind in ("csv", "json")}
        self._left_over(path for path in sorted(folder.glob("*")) if path.name not in known)
        return [folder / f"{shard}.csv" for shard in range(1, shards + 1)]

    def _shards(self, folder: Path) -> int:
        """Into how many shards the round was split, by the first record that says so."""
        for record in sorted(folder.glob("*.json"), key=lambda path: (len(path.name), path.name)):
            found = re.fullmatch(r"\d+/([1-9]\d*)", str(self.ledger.json(record, "record of scores").get("shard")))
            if found:
                return int(found[1])
        self.ledger.fault(folder, "has no record that says into how many shards the round was split")
        return len(list(folder.glob("*.csv"))) or 1

    def _left_over(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self.ledger.notes.append(f"{path} is no part of the round: an earlier or interrupted run has left it.")

    def _rows(self, path: Path, expected: Sequence[Measurement]) -> None:
        """A scores file has the rows of its shard, in their order."""
        if self.ledger.hash(path) is None:
            return
        try:
            rows = read_csv(path, COLUMNS, "scores file")
        except TenasError as error:
            self.ledger.fault(path, f"is damaged: {error}".rstrip("."))
            return
        order = {name: index for index, name in enumerate(self.settings["measures"])}
        expected = sorted(expected, key=lambda m: (m.trial, order[m.measure], m.repeat))
        if len(rows) != len(expected):
            self.ledger.fault(path, f"has {len(rows)} rows, where its shard has {len(expected)}")
        for line, (row, measurement) in enumerate(zip(rows, expected, strict=False), start=2):
            found = (row["trial"], row["measure"], row["repeat"])
            if found != tuple(map(str, measurement)):
                here, there = (f"trial {trial}, {measure}, repeat {repeat}" for trial, measure, repeat in (found, measurement))
                self.ledger.fault(path, f"has {here} in line {line}, where {there} belongs")
                break

    def _record(
        self, path: Path, record: Mapping, seed: int, round: Round, shard: str, measurements: int, mask_before: Path
    ) -> None:
        """The record beside a scores file tells the truth."""
        ledger, present = self.ledger, code_digest()
        expected = {"seed": seed, "round": round.number, "shard": shard, "measurements": measurements}
        for key, value in expected.items():
            ledger.equal(path, key, record.get(key), value)
        self._same_settings(path, record.get("settings"))
        ledger.code(path, "measurements", record.get("code_sha256"))
        inputs = {Path(name).name: digest for name, digest in mapping(record.get("inputs")).items()}
        needed = {"images.npy", "mask.json"} | ({"card.json"} if record.get("code_sha256") == present else set())
        if not needed <= inputs.keys() <= needed | {"card.json"}:
            ledger.fault(path, f"names other inputs than {', '.join(sorted(needed))}")
        places = {"mask.json": mask_before}
        if self.data is not None:
            places |= {name: self.data / name for name in ("images.npy", "card.json")}
        for name, digest in inputs.items():
            if name in places:
                ledger.recorded(places[name], digest, path)
        # Records of earlier versions have neither hash.
        hashes = ("scores_sha256", "record_sha256")
        if any(key in record for key in hashes) or record.get("code_sha256") == present:
            ledger.recorded(path.with_suffix(".csv"), record.get("scores_sha256"), path)
            if dict(record) != sealed({key: value for key, value in record.items() if key != "record_sha256"}):
                ledger.fault(path, "is not the record that was written: its own hash differs")
        else:
            self.unhashed += 1

    # --- genotype, and what was made of it

    def _genotype(self, folder: Path, mask: Mask) -> Genotype | None:
        path, last = folder / "genotype.json", folder / f"round{len(self.rounds)}" / "mask.json"
        try:
            genotype = self.space.genotype(mask)
        except TenasError as error:
            self.ledger.fault(last, f"leaves no genotype: {error}".rstrip("."))
            self.ledger.hash(path)
            return None
        self._decision(path, "genotype", genotype.to_json(), [last], "is not the genotype that the last mask leaves")
        drawing = folder / "genotype.svg"
        if self.ledger.hash(drawing) is not None and drawing.read_bytes() != draw(genotype).encode():
            self.ledger.fault(drawing, "is not the drawing of its genotype")
        self.trail.append(f"  genotype {genotype.arch}")
        for name, what in (("benchmark.json", "benchmark look-up"), ("retrain/metrics.json", "retraining's metrics")):
            if (folder / name).exists():
                value = self.ledger.json(folder / name, what)
                self.ledger.equal(folder / name, "arch", value.get("arch"), genotype.arch)
                self._inputs(folder / name, value, folder)
        if (folder / "export/export.json").exists():
            self._inputs(folder / "export/export.json", self.ledger.json(folder / "export/export.json", "export"), folder)
        return genotype

    def _inputs(self, path: Path, value: Mapping, folder: Path) -> None:
        """The hashes that a result after the search has of its inputs."""
        places = {
            "retrain.json": self.run / "retrain.json",
            "genotype.json": folder / "genotype.json",
            "network.pt": folder / "retrain" / "network.pt",
        }
        for name, digest in mapping(mapping(value.get("provenance")).get("inputs")).items():
            place = places.get(Path(name).name, input_path(name))
            if Path(name).name in places or place.exists():
                self.ledger.recorded(place, digest, path)
            else:
                self.ledger.notes.append(f"{name}, which {path} was made from, is not here: its hash was not looked at.")

    def _summary(self, genotypes: Mapping[int, Genotype | None]) -> None:
        """The table over the seeds has what their files have, in every column that both versions know."""
        path = self.run / "summary.csv"
        if not path.exists() or self.ledger.hash(path) is None:
            return
        try:
            rows = read_table(path, ("seed", "arch"), "summary")
            columns, again = summarise(self.run, [int(row["seed"]) for row in rows])
        except (TenasError, ValueError, KeyError) as error:
            self.ledger.fault(path, f"does not go with the seeds' files: {error}".rstrip("."))
            return
        expected = csv_rows(columns, again)
        for row, other in zip(rows, expected, strict=True):
            # A version that summarises more makes no liar of the one that wrote the table.
            for key in row.keys() - other.keys():
                self.ledger.fault(path, f"has a column {key!r} that no file of the seeds has anything for")
            for key in row.keys() & other.keys():
                if row[key] != other[key]:
                    self.ledger.fault(path, f"has {row[key] or 'nothing'} for {key} of seed {row['seed']}, not {other[key]}")
        for seed in genotypes.keys() - {int(row["seed"]) for row in rows}:
            self.ledger.notes.append(f"{path} has no row of seed {seed}.")

    # --- for the reader

    def _tell(self, round: Round, rows: Sequence[Mapping], paths: Sequence[Path]) -> None:
        """What a round has pruned, and from which rows of which files."""
        names = list(self.settings["measures"])
        repeats = sum(measure["repeats"] for measure in self.settings["measures"].values())
        shards = len(paths)
        counts = ", ".join(
            f"{path.name} ({repeats * len(range(shard, round.trials + 1, shards))})" for shard, path in enumerate(paths)
        )
        self.trail.append(f"  round {round.number}, {round.trials} trials; measurements in {paths[0].parent}: {counts}")

        def lines(trial: int) -> str:
            """Where the rows of a trial are: the file, and the lines of it, its header being line 1."""
            first = 2 + trial // shards * repeats
            return f"{trial % shards + 1}.csv:{first}-{first + repeats - 1}"

        for row in rows:
            if not row["pruned"]:
                continue
            cell = f"{row['cell']} " if len(self.space.cell_types) > 1 else ""
            changes = []
            for name in names:
                # One repeat has no error.
                error = f" +- {row[f'{name}_se']:.2g}" if row[f"{name}_se"] != "" else ""
                changes.append(f"{name} {row[f'{name}_change']:+.4g}{error} (rank {row[f'{name}_rank']:g})")
            self.trail.append(
                f"    {cell}{row['target']}<-{row['source']} loses {row['operator']:<13} share {row['pruned_share']:.2f}: "
                f"{', '.join(changes)}; rows {lines(row['trial'])}, whole {lines(0)}"
            )

    def _codes(self) -> None:
        if self.unhashed:
            self.ledger.notes.append(f"Scores of an earlier version, whose record does not have their hash: {self.unhashed}.")
        present = {"decisions": code_digest("search", "spaces"), "measurements": code_digest()}
        for kind, counts in self.ledger.codes.items():
            for digest, count in counts.items():
                if digest != present[kind]:
                    files = f"{count} file{'s' if count > 1 else ''}"
                    self.ledger.notes.append(f"{files} of {kind} made by another version of the code ({digest[:12]}).")


def csv_rows(columns: Sequence[str], rows: Iterable[Mapping]) -> Iterator[dict[str, str]]:
    """Rows as they are read back from the CSV that they are written to."""
    return csv.DictReader(io.StringIO(format_csv(columns, rows)))


def in_words(found: Audit) -> str:
    """The faults of an audit, one line a file."""
    lines = [f"  {path} {'; it '.join(faults)}." for path, faults in found.faults.items()]
    return "Not everything is as it was recorded:\n" + "\n".join(lines)
