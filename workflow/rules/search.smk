# A search: settings, the mask it starts from, then for each round its scores (in shards) and one pruning; last the genotype.
rule search_settings:
    output:
        "results/{run}/search.json",
    log:
        "logs/{run}/search_settings.log",
    benchmark:
        "logs/{run}/benchmarks/search_settings.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        asked=lambda wildcards: json.dumps(
            {
                "space": RUNS[wildcards.run]["space"],
                "preset": RUNS[wildcards.run]["preset"],
                "changes": RUNS[wildcards.run]["search"],
            }
        ),
        # Not for the command: what the presets' files and the schema make of it, so that a change there is noticed.
        resolved=lambda wildcards: json.dumps(RUNS[wildcards.run]["settings"]),
    shell:
        "tenas settings search {params.asked:q} --out {output:q} > {log:q} 2>&1"


rule mask:
    input:
        settings="results/{run}/search.json",
    output:
        "results/{run}/seed{seed}/round0/mask.json",
    log:
        "logs/{run}/mask/seed{seed}.log",
    benchmark:
        "logs/{run}/benchmarks/mask/seed{seed}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        code=code_digest(*CODE["mask"]),
    shell:
        "tenas mask --settings {input.settings:q} --out {output:q} > {log:q} 2>&1"


rule score:
    input:
        settings="results/{run}/search.json",
        images=lambda wildcards: f"data/{RUNS[wildcards.run]['dataset']}/images.npy",
        card=lambda wildcards: f"data/{RUNS[wildcards.run]['dataset']}/card.json",
        mask=mask_before,
    output:
        scores="results/{run}/seed{seed}/round{round}/scores/{shard}.csv",
        made="results/{run}/seed{seed}/round{round}/scores/{shard}.json",
    log:
        "logs/{run}/score/seed{seed}-round{round}-{shard}.log",
    benchmark:
        "logs/{run}/benchmarks/score/seed{seed}-round{round}-{shard}.tsv"
    conda:
        "../envs/tenas.yaml"
    threads: CONFIG["threads"]["score"]
    resources:
        gpu=gpus_of_a_job(),
    params:
        shards=shards,
        device=CONFIG["device"],
        code=code_digest(*CODE["score"]),
    shell:
        "tenas score --settings {input.settings:q} --images {input.images:q} --mask {input.mask:q}"
        " --round {wildcards.round} --seed {wildcards.seed} --shard {wildcards.shard}/{params.shards}"
        " --threads {threads} --device {params.device} --out {output.scores:q} > {log:q} 2>&1"


rule prune:
    input:
        settings="results/{run}/search.json",
        mask=mask_before,
        scores=lambda wildcards: [
            f"results/{wildcards.run}/seed{wildcards.seed}/round{wildcards.round}/scores/{shard}.csv"
            for shard in range(1, shards(wildcards) + 1)
        ],
    output:
        ranking="results/{run}/seed{seed}/round{round}/ranking.csv",
        mask="results/{run}/seed{seed}/round{round}/mask.json",
    log:
        "logs/{run}/prune/seed{seed}-round{round}.log",
    benchmark:
        "logs/{run}/benchmarks/prune/seed{seed}-round{round}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        code=code_digest(*CODE["prune"]),
    shell:
        "tenas prune --settings {input.settings:q} --mask {input.mask:q} --round {wildcards.round}"
        " --scores {input.scores:q} --ranking {output.ranking:q} --out {output.mask:q} > {log:q} 2>&1"


rule genotype:
    input:
        settings="results/{run}/search.json",
        mask=lambda wildcards: f"results/{wildcards.run}/seed{wildcards.seed}/round{len(rounds(wildcards.run))}/mask.json",
    output:
        genotype="results/{run}/seed{seed}/genotype.json",
        drawing=report(
            "results/{run}/seed{seed}/genotype.svg",
            caption="../report/genotype.rst",
            category="{run}",
            labels={"seed": "{seed}", "figure": "genotype"},
        ),
    log:
        "logs/{run}/genotype/seed{seed}.log",
    benchmark:
        "logs/{run}/benchmarks/genotype/seed{seed}.tsv"
    localrule: True
    conda:
        "../envs/tenas.yaml"
    params:
        code=code_digest(*CODE["genotype"]),
    shell:
        "tenas genotype --settings {input.settings:q} --mask {input.mask:q}"
        " --out {output.genotype:q} --svg {output.drawing:q} > {log:q} 2>&1"
