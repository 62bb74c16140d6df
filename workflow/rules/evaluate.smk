# What a genotype is worth: its accuracy in the space's benchmark, and that of the network trained from it.
rule benchmark:
    input:
        genotype="results/{run}/seed{seed}/genotype.json",
        index=lambda wildcards: index_file(space_of(wildcards.run)),
    output:
        "results/{run}/seed{seed}/benchmark.json",
    log:
        "logs/{run}/benchmark/seed{seed}.log",
    benchmark:
        "logs/{run}/benchmarks/benchmark/seed{seed}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        index=lambda wildcards: index_of(space_of(wildcards.run)),
        code=code_digest(*CODE["benchmark"]),
    shell:
        "tenas benchmark query {input.genotype:q} --index {params.index:q} --out {output:q} > {log:q} 2>&1"


# What searches find that may look accuracies up: what a run's genotypes have to stand against.
rule table_search:
    input:
        index_file("nas-bench-201"),
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
        code=code_digest(*CODE["table_search"]),
    shell:
        "tenas benchmark search --index {params.index:q} --budgets {params.budgets} --searches {params.searches}"
        " --out {output.table:q} > {log:q} 2>&1"


rule retrain_settings:
    output:
        "results/{run}/retrain.json",
    log:
        "logs/{run}/retrain_settings.log",
    benchmark:
        "logs/{run}/benchmarks/retrain_settings.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        asked=lambda wildcards: json.dumps(
            {
                "preset": RUNS[wildcards.run]["retrain"],
                "changes": RUNS[wildcards.run]["retraining"],
                "dataset": dataset_of(wildcards.run),
            }
        ),
        # As in search_settings.
        resolved=lambda wildcards: json.dumps(RUNS[wildcards.run]["retrain_settings"]),
    shell:
        "tenas settings retrain {params.asked:q} --out {output:q} > {log:q} 2>&1"


# checkpoint.pt, beside the outputs, is not one of them: it has to outlive a job that failed, to be resumed from.
rule retrain:
    input:
        settings="results/{run}/retrain.json",
        genotype="results/{run}/seed{seed}/genotype.json",
        dataset=lambda wildcards: file_of(RUNS[wildcards.run]["dataset"]),
    output:
        history=report(
            "results/{run}/seed{seed}/retrain/history.csv",
            caption="../report/history.rst",
            category="{run}",
            labels={"seed": "{seed}", "figure": "retraining, epoch by epoch"},
        ),
        metrics="results/{run}/seed{seed}/retrain/metrics.json",
        network="results/{run}/seed{seed}/retrain/network.pt",
    log:
        "logs/{run}/retrain/seed{seed}.log",
    benchmark:
        "logs/{run}/benchmarks/retrain/seed{seed}.tsv"
    conda:
        "../envs/tenas.yaml"
    threads: CONFIG["threads"]["retrain"]
    resources:
        gpu=gpus_of_a_job(),
    params:
        folder=lambda wildcards, output: str(Path(output.metrics).parent),
        device=CONFIG["device"],
        tenas=lambda wildcards, resources, threads: launched(resources, threads),
        threads=lambda wildcards, resources, threads: max(1, threads // processes(resources)),
        code=code_digest(*CODE["retrain"]),
    shell:
        "{params.tenas} retrain --settings {input.settings:q} --genotype {input.genotype:q} --seed {wildcards.seed}"
        " --threads {params.threads} --device {params.device} --out {params.folder:q} > {log:q} 2>&1"


rule export:
    input:
        "results/{run}/seed{seed}/retrain/network.pt",
    output:
        program="results/{run}/seed{seed}/export/network.pt2",
        onnx="results/{run}/seed{seed}/export/network.onnx",
        card="results/{run}/seed{seed}/export/export.json",
    log:
        "logs/{run}/export/seed{seed}.log",
    benchmark:
        "logs/{run}/benchmarks/export/seed{seed}.tsv"
    conda:
        "../envs/tenas.yaml"
    params:
        folder=lambda wildcards, output: str(Path(output.card).parent),
        code=code_digest(*CODE["export"]),
    shell:
        "tenas export --network {input:q} --out {params.folder:q} > {log:q} 2>&1"
