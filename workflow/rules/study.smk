# A correlation study: its settings, a sample of the benchmark's cells, their measures (in shards), and what these say of accuracy.
rule study_settings:
    output:
        "results/{study}/study.json",
    log:
        "logs/{study}/study_settings.log",
    benchmark:
        "logs/{study}/benchmarks/study_settings.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        asked=lambda wildcards: json.dumps(STUDIES[wildcards.study]),
    shell:
        "tenas settings study {params.asked:q} --out {output:q} > {log:q} 2>&1"


rule study_cells:
    input:
        settings="results/{study}/study.json",
        index=lambda wildcards: index_file(STUDIES[wildcards.study]["space"]),
    output:
        "results/{study}/cells.csv",
    log:
        "logs/{study}/study_cells.log",
    benchmark:
        "logs/{study}/benchmarks/study_cells.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        index=lambda wildcards: index_of(STUDIES[wildcards.study]["space"]),
        code=code_digest(*CODE["study_cells"]),
    shell:
        "tenas study-cells --settings {input.settings:q} --index {params.index:q} --out {output:q} > {log:q} 2>&1"


rule study_score:
    input:
        settings="results/{study}/study.json",
        images=lambda wildcards: f"data/{STUDIES[wildcards.study]['dataset']}/images.npy",
        labels=lambda wildcards: f"data/{STUDIES[wildcards.study]['dataset']}/labels.npy",
        card=lambda wildcards: f"data/{STUDIES[wildcards.study]['dataset']}/card.json",
        cells="results/{study}/cells.csv",
    output:
        scores="results/{study}/scores/{shard}.csv",
        made="results/{study}/scores/{shard}.json",
    log:
        "logs/{study}/study_score/{shard}.log",
    benchmark:
        "logs/{study}/benchmarks/study_score/{shard}.tsv"
    conda:
        "../envs/tenas.yaml"
    threads: CONFIG["threads"]["score"]
    resources:
        gpu=gpus_of_a_job(),
    params:
        shards=lambda wildcards: study_shards(wildcards.study),
        device=CONFIG["device"],
        code=code_digest(*CODE["study_score"]),
    shell:
        "tenas study-score --settings {input.settings:q} --images {input.images:q} --cells {input.cells:q}"
        " --shard {wildcards.shard}/{params.shards} --threads {threads} --device {params.device}"
        " --out {output.scores:q} > {log:q} 2>&1"


rule correlate:
    input:
        settings="results/{study}/study.json",
        cells="results/{study}/cells.csv",
        index=lambda wildcards: index_file(STUDIES[wildcards.study]["space"]),
        scores=lambda wildcards: [
            f"results/{wildcards.study}/scores/{shard}.csv" for shard in range(1, study_shards(wildcards.study) + 1)
        ],
    output:
        table=report(
            "results/{study}/correlations.csv",
            caption="../report/correlations.rst",
            category="{study}",
            labels={"seed": "-", "figure": "correlations"},
        ),
        made="results/{study}/correlations.json",
        forest=report(
            "results/{study}/forest.svg",
            caption="../report/forest.rst",
            category="{study}",
            labels={"seed": "-", "figure": "correlations with intervals"},
        ),
        scatter=report(
            "results/{study}/scatter.svg",
            caption="../report/scatter.rst",
            category="{study}",
            labels={"seed": "-", "figure": "cells"},
        ),
    log:
        "logs/{study}/correlate.log",
    benchmark:
        "logs/{study}/benchmarks/correlate.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        folder=lambda wildcards, output: str(Path(output.table).parent),
        index=lambda wildcards: index_of(STUDIES[wildcards.study]["space"]),
        code=code_digest(*CODE["correlate"]),
    shell:
        "tenas correlate --settings {input.settings:q} --cells {input.cells:q} --index {params.index:q}"
        " --scores {input.scores:q} --out {params.folder:q} > {log:q} 2>&1"
