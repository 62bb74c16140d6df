# A search: settings, initial mask, then per round measurements (in shards) and decision; last the genotype.
rule search_settings:
    output:
        layout.results(layout.SEARCH),
    log:
        "logs/{run}/search_settings.log",
    benchmark:
        "logs/{run}/timings/search_settings.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        resolved=lambda wildcards: json.dumps(RUNS[wildcards.run]["settings"]),
    shell:
        "tenas settings search {params.resolved:q} --out {output:q} > {log:q} 2>&1"


# Costs of operators in the finally trained network; only for runs with limits.
rule limits:
    input:
        settings=layout.results(layout.SEARCH),
        card=prepared(layout.CARD),
        table=lambda wildcards: RUNS[wildcards.run]["settings"]["limits"].get("latency", {}).get("table", []),
    output:
        layout.results(layout.LIMITS),
    log:
        "logs/{run}/limits.log",
    benchmark:
        "logs/{run}/timings/limits.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        code=code_of("limits", networks=True),
    shell:
        "tenas limits --settings {input.settings:q} --card {input.card:q} --out {output:q} > {log:q} 2>&1"


rule mask:
    input:
        settings=layout.results(layout.SEARCH),
        # A limit that no cell meets stops the search here.
        limits=limits_of,
    output:
        layout.results(layout.MASK).replace("{round}", "0"),
    log:
        "logs/{run}/mask/seed{seed}.log",
    benchmark:
        "logs/{run}/timings/mask/seed{seed}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        code=code_of("mask"),
    shell:
        "tenas mask --settings {input.settings:q} --out {output:q} > {log:q} 2>&1"


rule sample:
    input:
        settings=layout.results(layout.SEARCH),
        before=state_before("cells"),
        limits=limits_of,
        listed=lambda wildcards: [
            name for name in [entry_of(wildcards)["sample"]] if isinstance(name, str) and name != "all"
        ],
    output:
        layout.results(layout.SAMPLE),
    log:
        "logs/{run}/sample/seed{seed}-round{round}.log",
    benchmark:
        "logs/{run}/timings/sample/seed{seed}-round{round}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        limits=lambda wildcards, input: ["--limits", input.limits] if input.limits else [],
        code=code_of("sample"),
    shell:
        "tenas sample --settings {input.settings:q} --round {wildcards.round} --seed {wildcards.seed}"
        " --before {input.before:q} {params.limits:q} --out {output:q} > {log:q} 2>&1"


rule score:
    input:
        settings=layout.results(layout.SEARCH),
        images=prepared(layout.IMAGES),
        labels=prepared(layout.LABELS),
        card=prepared(layout.CARD),
        subjects=subjects_of,
    output:
        scores=layout.results(layout.SCORES),
        made=layout.results(layout.SCORES_RECORD),
    log:
        "logs/{run}/score/seed{seed}-round{round}-{shard}.log",
    benchmark:
        "logs/{run}/timings/score/seed{seed}-round{round}-{shard}.tsv"
    conda:
        "../envs/tenas.yaml"
    threads: CONFIG["threads"]["score"]
    resources:
        gpu=gpus_of_a_job(measures=True),
    params:
        shards=shards_of,
        device=device_of,
        code=lambda wildcards: score_code(wildcards.run, int(wildcards.round)),
    shell:
        "tenas score --settings {input.settings:q} --images {input.images:q} --subjects {input.subjects:q}"
        " --round {wildcards.round} --seed {wildcards.seed} --shard {wildcards.shard}/{params.shards}"
        " --threads {threads} --device {params.device} --planned-code {params.code} --out {output.scores:q} > {log:q} 2>&1"


# Round of operators or edges: rank its trials, prune.
rule prune:
    input:
        settings=layout.results(layout.SEARCH),
        mask=state_before(*PRUNES),
        scores=scores_of(layout.SCORES),
        records=scores_of(layout.SCORES_RECORD),
        limits=limits_of,
    output:
        ranking=layout.results(layout.RANKING),
        mask=layout.results(layout.MASK),
    log:
        "logs/{run}/prune/seed{seed}-round{round}.log",
    benchmark:
        "logs/{run}/timings/prune/seed{seed}-round{round}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        limits=lambda wildcards, input: ["--limits", input.limits] if input.limits else [],
        code=lambda wildcards: ranking_code("prune", RUNS[wildcards.run]["settings"], entry_of(wildcards)),
    shell:
        "tenas prune --settings {input.settings:q} --mask {input.mask:q} --round {wildcards.round} --scores {input.scores:q}"
        " {params.limits:q} --ranking {output.ranking:q} --out {output.mask:q} > {log:q} 2>&1"


# Round of cells: rank them, keep the best.
rule shortlist:
    input:
        settings=layout.results(layout.SEARCH),
        cells=layout.results(layout.SAMPLE),
        scores=scores_of(layout.SCORES),
        records=scores_of(layout.SCORES_RECORD),
    output:
        ranking=layout.results(layout.CELLS),
        cells=layout.results(layout.SHORTLIST),
    log:
        "logs/{run}/shortlist/seed{seed}-round{round}.log",
    benchmark:
        "logs/{run}/timings/shortlist/seed{seed}-round{round}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        code=lambda wildcards: ranking_code("shortlist", RUNS[wildcards.run]["settings"], entry_of(wildcards)),
    shell:
        "tenas shortlist --settings {input.settings:q} --cells {input.cells:q} --round {wildcards.round}"
        " --scores {input.scores:q} --ranking {output.ranking:q} --out {output.cells:q} > {log:q} 2>&1"


# Round of trainings: one job per cell of the shortlist. checkpoint.pt is no output, so that it survives a failed job.
rule training:
    input:
        settings=layout.results(layout.SEARCH),
        shortlist=state_before("training"),
        dataset=lambda wildcards: file_of(RUNS[wildcards.run]["dataset"]),
        card=prepared(layout.CARD),
    output:
        metrics=layout.results(layout.TRAINING_METRICS),
        history=layout.results(layout.TRAINING_HISTORY),
    log:
        "logs/{run}/training/seed{seed}-round{round}-{place}.log",
    benchmark:
        "logs/{run}/timings/training/seed{seed}-round{round}-{place}.tsv"
    conda:
        "../envs/tenas.yaml"
    threads: CONFIG["threads"]["retrain"]
    resources:
        gpu=gpus_of_a_job(measures=False),
    params:
        folder=lambda wildcards, output: str(Path(output.metrics).parent),
        dataset=lambda wildcards: json.dumps(dataset_of(wildcards.run)),
        device=device_of,
        tenas=lambda wildcards, resources, threads: launched(resources, threads),
        threads=lambda wildcards, resources, threads: max(1, threads // processes(resources)),
        code=code_of("training", networks=True, images=True),
    shell:
        "{params.tenas} training --settings {input.settings:q} --dataset {params.dataset:q} --shortlist {input.shortlist:q}"
        " --card {input.card:q} --round {wildcards.round} --place {wildcards.place} --seed {wildcards.seed} --threads {params.threads}"
        " --device {params.device} --out {params.folder:q} > {log:q} 2>&1"


rule finalists:
    input:
        settings=layout.results(layout.SEARCH),
        shortlist=state_before("training"),
        trainings=trainings_of,
        table=lambda wildcards: index_file(space_of(wildcards.run)) if entry_of(wildcards)["column"] else [],
    output:
        ranking=layout.results(layout.TRAININGS),
        cells=layout.results(layout.FINALISTS),
    log:
        "logs/{run}/finalists/seed{seed}-round{round}.log",
    benchmark:
        "logs/{run}/timings/finalists/seed{seed}-round{round}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        results=lambda wildcards, input: (
            ["--table", index_of(space_of(wildcards.run))]
            if entry_of(wildcards)["column"]
            else ["--trainings", *input.trainings]
        ),
        code=code_of("finalists"),
    shell:
        "tenas finalists --settings {input.settings:q} --shortlist {input.shortlist:q} --round {wildcards.round}"
        " {params.results:q} --ranking {output.ranking:q} --out {output.cells:q} > {log:q} 2>&1"


rule genotype:
    input:
        settings=layout.results(layout.SEARCH),
        state=lambda wildcards: state_after(wildcards.run, wildcards.seed, len(rounds(wildcards.run))),
    output:
        layout.results(layout.GENOTYPE),
    log:
        "logs/{run}/genotype/seed{seed}.log",
    benchmark:
        "logs/{run}/timings/genotype/seed{seed}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        code=code_of("genotype"),
    shell:
        "tenas genotype --settings {input.settings:q} --state {input.state:q} --out {output:q} > {log:q} 2>&1"


rule draw:
    input:
        layout.results(layout.GENOTYPE),
    output:
        report(
            layout.results(layout.DRAWING),
            caption="../report/genotype.rst",
            category="{run}",
            labels={"seed": "{seed}", "figure": "genotype"},
        ),
    log:
        "logs/{run}/draw/seed{seed}.log",
    benchmark:
        "logs/{run}/timings/draw/seed{seed}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        code=code_of("draw"),
    shell:
        "tenas draw --genotype {input:q} --out {output:q} > {log:q} 2>&1"
