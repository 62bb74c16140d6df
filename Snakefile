# A thin front, so that `snakemake` works in the repository's folder; the workflow lies where the Snakemake catalog looks for it.
include: "workflow/Snakefile"


# Without this line a Snakefile that only includes has nothing to do.
workflow.default_target = "all"
