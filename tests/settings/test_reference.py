"""The reference of the settings is what the models say, and the schemas for editors know the files that come with the project."""

import json

import jsonschema
import pytest
import yaml
from helpers import ROOT

from tenas.settings.base import merged
from tenas.settings.reference import FILES, definitions, files

CONFIG = ROOT / "config"
OF = {
    "config.json": [*CONFIG.glob("*.yaml"), ROOT / "examples" / "config.yaml"],
    "search.json": [*(CONFIG / "presets").glob("*.yaml"), ROOT / "examples" / "quick.yaml"],
    "retrain.json": list((CONFIG / "retrain").glob("*.yaml")),
    "claims.json": [CONFIG / "claims.yaml"],
}
# Laid over others, and no configurations by themselves.
PARTS = {CONFIG / "claims.yaml", CONFIG / "samples.yaml"}
CASES = [(name, path) for name, paths in OF.items() for path in paths if name != "config.json" or path not in PARTS]


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((CONFIG / "schemas" / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_what_is_written_is_what_the_models_say():
    """Else: run scripts/reference."""
    assert set(FILES) == {path.name for path in (CONFIG / "schemas").iterdir()} == set(OF)
    for name, text in files((CONFIG / "README.md").read_text(encoding="utf-8")).items():
        assert (CONFIG / name).read_text(encoding="utf-8") == text, name


def test_every_key_says_what_it_is():
    missing = [
        f"{name}.{key}"
        for name, model in definitions().items()
        for key, part in model["properties"].items()
        if not part.get("description") and key != "kind" and "$ref" not in part
    ]
    assert not missing
    # What stands in angle brackets outside code would vanish from the page.
    rows = [line for line in (CONFIG / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) > 60
    assert not [row for row in rows if "<" in "".join(row.split("`")[::2])]


@pytest.mark.parametrize(("name", "path"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_the_files_of_the_project_are_in_their_schema(name, path):
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    validator(name).validate(value)


@pytest.mark.parametrize(
    "change",
    [
        {"shard": 2},
        {"device": "gpu"},
        {"runs": {"own-chain": {"limits": {"parameter": 1}}}},
        {"runs": {"own-chain": {"search": {"measures": {"naswot": {"batches": 4}}}}}},
        {"runs": {"own-chain": {"search": {"rounds": [{"kind": "cell", "keep": 2}]}}}},
        {"runs": {"own-chain": {"retraining": {"epoch": 4}}}},
        {"datasets": {"shapes": {"images": 0}}},
    ],
    ids=str,
)
def test_a_schema_knows_what_is_no_key_and_no_value(change):
    value = yaml.safe_load((ROOT / "examples" / "config.yaml").read_text(encoding="utf-8"))
    assert not validator("config.json").is_valid(merged(value, change))
