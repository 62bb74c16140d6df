#!/usr/bin/env bash
# Snakemake runs this in the new environment, from the working directory, which has to be the repository's folder.
set -euo pipefail
python -m pip install --constraint constraints.txt --editable .
