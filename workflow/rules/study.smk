# A correlation study: settings, a sample of the benchmark's cells, their measures (in shards), correlations with accuracy.
rule study_settings:
    output:
        layout.results(layout.STUDY, "study"),
    log:
        "logs/{study}/study_settings.log",
    benchmark:
        "logs/{study}/timings/study_settings.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        resolved=lambda wildcards: json.dumps(STUDIES[wildcards.study]),
    shell:
        "tenas settings study {params.resolved:q} --out {output:q} > {log:q} 2>&1"


rule study_cells:
    input:
        settings=layout.results(layout.STUDY, "study"),
        index=lambda wildcards: index_file(STUDIES[wildcards.study]["space"]),
    output:
        layout.results(layout.STUDY_CELLS, "study"),
    log:
        "logs/{study}/study_cells.log",
    benchmark:
        "logs/{study}/timings/study_cells.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        index=lambda wildcards: index_of(STUDIES[wildcards.study]["space"]),
        code=lambda wildcards: stage_code("study_cells", STUDIES[wildcards.study]),
    shell:
        "tenas study cells --settings {input.settings:q} --index {params.index:q} --out {output:q} > {log:q} 2>&1"


rule study_score:
    input:
        settings=layout.results(layout.STUDY, "study"),
        images=prepared(layout.IMAGES, STUDIES),
        labels=prepared(layout.LABELS, STUDIES),
        card=prepared(layout.CARD, STUDIES),
        cells=layout.results(layout.STUDY_CELLS, "study"),
    output:
        scores=layout.results(layout.STUDY_SCORES, "study"),
        made=layout.results(layout.STUDY_SCORES_RECORD, "study"),
    log:
        "logs/{study}/study_score/{shard}.log",
    benchmark:
        "logs/{study}/timings/study_score/{shard}.tsv"
    conda:
        "../envs/tenas.yaml"
    threads: CONFIG["threads"]["score"]
    resources:
        gpu=gpus_of_a_job(measures=True),
    params:
        shards=lambda wildcards: study_shards(wildcards.study),
        device=device_of,
        code=lambda wildcards: measuring_code("study_score", STUDIES[wildcards.study], STUDIES[wildcards.study]),
    shell:
        "tenas study score --settings {input.settings:q} --images {input.images:q} --cells {input.cells:q}"
        " --shard {wildcards.shard}/{params.shards} --threads {threads} --device {params.device}"
        " --planned-code {params.code} --out {output.scores:q} > {log:q} 2>&1"


rule correlate:
    input:
        settings=layout.results(layout.STUDY, "study"),
        cells=layout.results(layout.STUDY_CELLS, "study"),
        index=lambda wildcards: index_file(STUDIES[wildcards.study]["space"]),
        scores=study_scores_of,
        records=lambda wildcards: study_scores_of(wildcards, layout.STUDY_SCORES_RECORD),
    output:
        table=report(
            layout.results(layout.CORRELATIONS, "study"),
            caption="../report/correlations.rst",
            category="{study}",
            labels={"seed": "-", "figure": "correlations"},
        ),
        made=layout.results(layout.CORRELATIONS_RECORD, "study"),
        forest=report(
            layout.results(layout.FOREST, "study"),
            caption="../report/forest.rst",
            category="{study}",
            labels={"seed": "-", "figure": "correlations with intervals"},
        ),
        scatter=report(
            layout.results(layout.SCATTER, "study"),
            caption="../report/scatter.rst",
            category="{study}",
            labels={"seed": "-", "figure": "cells"},
        ),
    log:
        "logs/{study}/correlate.log",
    benchmark:
        "logs/{study}/timings/correlate.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        folder=lambda wildcards, output: str(Path(output.table).parent),
        index=lambda wildcards: index_of(STUDIES[wildcards.study]["space"]),
        code=lambda wildcards: ranking_code("study_correlate", STUDIES[wildcards.study], STUDIES[wildcards.study]),
    shell:
        "tenas study correlate --settings {input.settings:q} --cells {input.cells:q} --index {params.index:q}"
        " --scores {input.scores:q} --out {params.folder:q} > {log:q} 2>&1"
