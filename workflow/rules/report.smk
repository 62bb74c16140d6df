# Summaries over the seeds of runs, verdicts on claims, and figures of the report (snakemake --report results/report.html).
rule plot_rankings:
    input:
        rankings=lambda wildcards: tables(wildcards.run, wildcards.seed),
    output:
        report(
            layout.results(layout.RANKINGS),
            caption="../report/rankings.rst",
            category="{run}",
            labels={"seed": "{seed}", "figure": "rankings"},
        ),
    log:
        "logs/{run}/plot_rankings/seed{seed}.log",
    benchmark:
        "logs/{run}/timings/plot_rankings/seed{seed}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        code=code_digest("tenas.stages.plot"),
    shell:
        "tenas plot --rankings {input.rankings:q} --out {output:q} > {log:q} 2>&1"


rule summary:
    input:
        results=lambda wildcards: [
            layout.results(pattern).format(run=wildcards.run, seed=seed)
            for seed in RUNS[wildcards.run]["seeds"]
            for pattern in [layout.GENOTYPE, layout.LOOKUP]
            + ([layout.RETRAIN_METRICS] if RUNS[wildcards.run]["retrain"] else [])
        ],
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
        tested=lambda wildcards: tested(),
        code=claims_code(),
    shell:
        "tenas claims {input.claims:q} --tested {params.tested:q} --out {output.judged:q} --page {output.page:q} > {log:q} 2>&1"
