# Summaries over the seeds of runs, verdicts on claims, and pages and figures of the report (snakemake --report results/report.html).
rule plot:
    input:
        results=lambda wildcards: results_of(wildcards.run),
        settings=layout.results(layout.SEARCH),
        limits=limits_of,
        index=lambda wildcards: index_file(space_of(wildcards.run)),
        searches=lambda wildcards: [
            name
            for seed in RUNS[wildcards.run]["seeds"]
            for name in records_of(wildcards.run, seed) + states_of(wildcards.run, seed)
        ],
        histories=lambda wildcards: histories_of(wildcards.run),
    output:
        page=report(
            layout.results(layout.OVERVIEW),
            caption="../report/overview.rst",
            category="Overview",
            labels={"run": "{run}"},
        ),
        # Which figures there are follows from the run: whether it has a table, trainings, several seeds. The page has them.
        figures=directory(layout.results(layout.FIGURES)),
    log:
        "logs/{run}/plot.log",
    benchmark:
        "logs/{run}/timings/plot.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        folder=lambda wildcards, output: str(Path(output.page).parent),
        seeds=lambda wildcards: RUNS[wildcards.run]["seeds"],
        code=code_of("plot"),
    shell:
        "tenas plot {params.folder:q} --seeds {params.seeds} > {log:q} 2>&1"


rule summary:
    input:
        results=lambda wildcards: results_of(wildcards.run),
        settings=layout.results(layout.SEARCH),
        searches=lambda wildcards: [
            name for seed in RUNS[wildcards.run]["seeds"] for name in records_of(wildcards.run, seed)
        ],
    output:
        table=report(
            layout.results(layout.SUMMARY),
            caption="../report/summary.rst",
            category="{run}",
            labels={"seed": "all", "figure": "summary"},
        ),
        metrics=layout.results(layout.METRICS),
    log:
        "logs/{run}/summary.log",
    benchmark:
        "logs/{run}/timings/summary.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        folder=lambda wildcards, output: str(Path(output.table).parent),
        seeds=lambda wildcards: RUNS[wildcards.run]["seeds"],
        code=code_digest("tenas.stages.summary"),
    shell:
        "tenas summary {params.folder:q} --seeds {params.seeds} --out {output.table:q}"
        " --metrics {output.metrics:q} > {log:q} 2>&1"


rule claims:
    input:
        claims=CONFIG["claims"] or [],
        configurations=list(map(str, configurations_of(CONFIG["claims"]))) if CONFIG["claims"] else [],
        results=lambda wildcards: [
            f"results/{run}/{'summary' if run in RUNS else 'correlations'}.csv" for run in tested()
        ],
        beside=lambda wildcards: [name for run in tested() if run in RUNS for name in beside(run)],
        studies=lambda wildcards: [
            layout.results(layout.STUDY, "study").format(study=study) for study in tested() if study in STUDIES
        ],
    output:
        judged="results/claims.json",
        page=report(
            "results/claims.md",
            caption="../report/claims.rst",
            category="Claims",
            labels={"seed": "all", "figure": "claims"},
        ),
    log:
        "logs/claims.log",
    benchmark:
        "logs/claims.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        tested=lambda wildcards: ["--tested", *tested()] if tested() else [],
        code=claims_code(),
    shell:
        "tenas claims {input.claims:q} {params.tested:q} --out {output.judged:q} --page {output.page:q} > {log:q} 2>&1"
