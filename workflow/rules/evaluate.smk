# Evaluate a genotype: its accuracy in the space's benchmark, and that of its network after retraining.
rule lookup:
    input:
        genotype=layout.results(layout.GENOTYPE),
        index=lambda wildcards: index_file(space_of(wildcards.run)),
    output:
        layout.results(layout.LOOKUP),
    log:
        "logs/{run}/lookup/seed{seed}.log",
    benchmark:
        "logs/{run}/timings/lookup/seed{seed}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        index=lambda wildcards: index_of(space_of(wildcards.run)),
        code=code_of("benchmark_query"),
    shell:
        "tenas benchmark query {input.genotype:q} --index {params.index:q} --out {output:q} > {log:q} 2>&1"


# Tabular searches, which look accuracies up: baselines for the genotypes of runs.
rule table_search:
    input:
        lambda wildcards: index_file("nas-bench-201"),
    output:
        table="results/table_search.csv",
        made_by="results/table_search.json",
    log:
        "logs/table_search.log",
    benchmark:
        "logs/table_search.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        index=index_of("nas-bench-201"),
        budgets=(CONFIG["table_search"] or {}).get("budgets"),
        searches=(CONFIG["table_search"] or {}).get("seeds"),
        code=code_digest("tenas.stages.benchmark_search", "tenas.spaces.nas_bench_201"),
    shell:
        "tenas benchmark search --index {params.index:q} --budgets {params.budgets} --searches {params.searches}"
        " --out {output.table:q} > {log:q} 2>&1"


rule retrain_settings:
    output:
        layout.results(layout.RETRAIN),
    log:
        "logs/{run}/retrain_settings.log",
    benchmark:
        "logs/{run}/timings/retrain_settings.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        resolved=lambda wildcards: json.dumps(retraining_of(wildcards.run)),
    shell:
        "tenas settings retrain {params.resolved:q} --out {output:q} > {log:q} 2>&1"


# checkpoint.pt, in the same folder, is no output: it must survive a failed job, for the next one to resume.
rule retrain:
    input:
        settings=layout.results(layout.RETRAIN),
        genotype=layout.results(layout.GENOTYPE),
        dataset=lambda wildcards: file_of(RUNS[wildcards.run]["dataset"]),
        card=prepared(layout.CARD),
    output:
        history=report(
            layout.results(layout.HISTORY),
            caption="../report/history.rst",
            category="{run}",
            labels={"seed": "{seed}", "figure": "retraining, epoch by epoch"},
        ),
        metrics=layout.results(layout.RETRAIN_METRICS),
        network=layout.results(layout.NETWORK),
    log:
        "logs/{run}/retrain/seed{seed}.log",
    benchmark:
        "logs/{run}/timings/retrain/seed{seed}.tsv"
    conda:
        "../envs/tenas.yaml"
    threads: CONFIG["threads"]["retrain"]
    resources:
        gpu=gpus_of_a_job(measures=False),
    params:
        folder=lambda wildcards, output: str(Path(output.metrics).parent),
        device=device_of,
        tenas=lambda wildcards, resources, threads: launched(resources, threads),
        threads=lambda wildcards, resources, threads: max(1, threads // processes(resources)),
        code=code_of("retrain", networks=True, images=True),
    shell:
        "{params.tenas} retrain --settings {input.settings:q} --genotype {input.genotype:q} --card {input.card:q}"
        " --seed {wildcards.seed} --threads {params.threads} --device {params.device} --out {params.folder:q} > {log:q} 2>&1"


rule export:
    input:
        layout.results(layout.NETWORK),
    output:
        program=layout.results(layout.PROGRAM),
        onnx=layout.results(layout.ONNX),
        card=layout.results(layout.EXPORT),
    log:
        "logs/{run}/export/seed{seed}.log",
    benchmark:
        "logs/{run}/timings/export/seed{seed}.tsv"
    conda:
        "../envs/tenas.yaml"
    params:
        folder=lambda wildcards, output: str(Path(output.card).parent),
        code=code_of("export", networks=True),
    shell:
        "tenas export --network {input:q} --out {params.folder:q} > {log:q} 2>&1"
