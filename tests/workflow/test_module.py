"""The workflow as a module of another one."""

import pytest
import yaml
from helpers import ROOT
from helpers.pages import blocks, page
from helpers.runs import TINY, call, changed, job_counts, succeed

pytestmark = pytest.mark.workflow


def test_another_workflow_takes_the_rules_with_its_own_configuration(tmp_path):
    """As docs/workflow.md has it. The rules are those of every other test, so a few jobs are run and the rest is planned."""
    (text,) = [block.text for block in blocks(page("docs/workflow.md")) if block.name == "Snakefile"]
    (tmp_path / "Snakefile").write_text(text, encoding="utf-8")
    # The second stands where the project's own would, and has keys that only the other workflow knows.
    (tmp_path / "config").mkdir()
    config = changed(TINY, retrain=None, retraining={})
    for name in ("config.yaml", "config/config.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump({"tenas": config, "others": [1]}), encoding="utf-8")
    planned = job_counts(succeed(call("snakemake", "--cores", "1", "--dry-run", cwd=tmp_path)))
    assert planned == {"cells": 1, "tenas_search_settings": 1, "tenas_mask": 1, "tenas_genotype": 1, "tenas_prepare": 1} | {
        "tenas_score": 6,
        "tenas_prune": 3,
    }
    succeed(call("snakemake", "--cores", "1", "--", "results/digits/seed0/round0/mask.json", cwd=tmp_path))
    assert (tmp_path / "results/digits/search.json").is_file()
    # What is wrong under the key is said as in a file of its own.
    config["runs"]["digits"]["preset"] = "presett"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"tenas": config}), encoding="utf-8")
    failed = call("snakemake", "--cores", "1", "--dry-run", cwd=tmp_path)
    assert failed.returncode
    assert "presett" in failed.stdout


def test_the_catalog_is_told_what_the_workflow_has():
    """The format: https://github.com/snakemake/snakemake-workflow-catalog, docs."""
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    assert usage["mandatory-flags"] == {"desc": None, "flags": None}
    assert usage["software-stack-deployment"] == {"conda": True, "apptainer": False, "apptainer+conda": False, "report": True}
    assert (ROOT / "workflow" / "Snakefile").is_file()
    assert (ROOT / "config" / "README.md").is_file()
