# What a run has found, over its seeds, what that says of the claims, and the figures of the report (snakemake --report results/report.html).
rule plot_rankings:
    input:
        rankings=lambda wildcards: [
            f"results/{wildcards.run}/seed{wildcards.seed}/round{round.number}/ranking.csv"
            for round in rounds(wildcards.run)
        ],
    output:
        report(
            "results/{run}/seed{seed}/rankings.svg",
            caption="../report/rankings.rst",
            category="{run}",
            labels={"seed": "{seed}", "figure": "rankings"},
        ),
    log:
        "logs/{run}/plot_rankings/seed{seed}.log",
    benchmark:
        "logs/{run}/benchmarks/plot_rankings/seed{seed}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        code=code_digest(*CODE["plot_rankings"]),
    shell:
        "tenas plot --rankings {input.rankings:q} --out {output:q} > {log:q} 2>&1"


rule summary:
    input:
        lambda wildcards: [
            f"results/{wildcards.run}/seed{seed}/{name}"
            for seed in RUNS[wildcards.run]["seeds"]
            for name in ["genotype.json", "benchmark.json"]
            + (["retrain/metrics.json"] if RUNS[wildcards.run]["retrain"] else [])
        ],
    output:
        table=report(
            "results/{run}/summary.csv",
            caption="../report/summary.rst",
            category="{run}",
            labels={"seed": "all", "figure": "summary"},
        ),
        metrics="results/{run}/metrics.json",
    log:
        "logs/{run}/summary.log",
    benchmark:
        "logs/{run}/benchmarks/summary.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        folder=lambda wildcards, output: str(Path(output.table).parent),
        seeds=lambda wildcards: RUNS[wildcards.run]["seeds"],
        code=code_digest(*CODE["summary"]),
    shell:
        "tenas summary {params.folder:q} --seeds {params.seeds} --out {output.table:q}"
        " --metrics {output.metrics:q} > {log:q} 2>&1"


rule claims:
    input:
        claims=CONFIG["claims"] or [],
        results=lambda wildcards: [
            f"results/{run}/{'summary' if run in RUNS else 'correlations'}.csv" for run in tested()
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
        code=code_digest(*CODE["claims"]),
    shell:
        "tenas claims {input.claims:q} --tested {params.tested:q} --out {output.judged:q} --page {output.page:q} > {log:q} 2>&1"
