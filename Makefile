# make search      the search on the embedded default data, its retraining, and a report
# make test        the whole test suite
# make check       lint, and the tests but the long ones, with the lines and branches that the fast ones cover
# make test-fast   the tests that aren't marked slow, in a few minutes
# make site        the documentation as pages in build/site, to be read in a browser
# make stress      1,000 kills and 200 faults of disk, memory and clock, of tiny searches, trainings and other stages, and 500 measurements by
#                  each measure: an hour (scripts/stress --help)
# make mutants     changes the code of decisions, measures and audit in one place at a time, and says which changes no test notices: an
#                  hour or more (`mutmut results`, `mutmut show NAME`)
# make lint        style, types and spelling of the code and of the workflow
# Each makes .venv first where there is none. Another Python: make search PYTHON=python3.12

PYTHON ?= python3
CORES ?= $(shell nproc)
# Tests of a file share fixtures, so they run in one process; those that conftest puts first start first. Half as many workers again as
# cores: a third of the time, a test waits for a process that it has started, or for a clock.
PARALLEL := --numprocesses $(shell expr $(CORES) + $(CORES) / 2) --dist loadfile --no-loadscope-reorder
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: search test check test-fast stress mutants site lint
.DELETE_ON_ERROR:

search: .venv/installed
	snakemake --cores $(CORES)
	snakemake --cores $(CORES) --report results/report.html --quiet all
	tenas show results/digits

test: .venv/installed
	pytest $(PARALLEL)

check: lint
	pytest $(PARALLEL) -m "not long" --cov

test-fast: .venv/installed
	pytest $(PARALLEL) -m "not slow"

stress: .venv/installed
	scripts/stress

mutants: .venv/installed
	OMP_NUM_THREADS=1 mutmut run --max-children $(CORES)

site: .venv/installed
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

lint: .venv/installed
	ruff check .
	ruff format --check .
	mypy
	codespell
	snakefmt --check Snakefile workflow
	snakemake --lint

# An environment without pip (Debian splits venv in two packages) is made again. Files are compiled on all cores; some packages have
# files of other Pythons, which don't compile.
.venv/installed: pyproject.toml constraints.txt
	.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	.venv/bin/python -m compileall -qq -j 0 .venv/lib || true
	touch $@
