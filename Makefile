# make search   the search on the embedded default data, its retraining, and a report
# make test     the whole test suite, and what it covers
# make lint     style, types and spelling of the code and of the workflow
# Each makes .venv first where there is none. Another Python: make search PYTHON=python3.12

PYTHON ?= python3
CORES ?= $(shell nproc)
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: search test lint
.DELETE_ON_ERROR:

search: .venv/installed
	snakemake --cores $(CORES)
	snakemake --cores $(CORES) --report results/report.html --quiet all
	tenas show results/digits

test: .venv/installed
	pytest --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder --cov

lint: .venv/installed
	ruff check .
	ruff format --check .
	mypy
	codespell
	snakefmt --check Snakefile workflow
	snakemake --lint

# An environment without pip (Debian splits venv in two packages) is made again.
.venv/installed: pyproject.toml constraints.txt
	.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
