"""Print the path of the workflow."""


def workflow() -> str:
    """Print the path of the Snakefile, for Snakemake's own command line.

    Examples:
        snakemake --snakefile "$(tenas workflow)" --configfile mine.yaml --cores all --keep-going
        snakemake --snakefile "$(tenas workflow)" --configfile mine.yaml --cores all results/mine/seed0/genotype.json
    """
    from tenas.code import PROJECT

    return str(PROJECT / "Snakefile")
