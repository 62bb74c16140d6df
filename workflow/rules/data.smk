# Prepare a data set: one small file of images for the search, with a card and a preview.
rule prepare:
    input:
        lambda wildcards: file_of(wildcards.dataset),
    output:
        images=layout.prepared(layout.IMAGES),
        labels=layout.prepared(layout.LABELS),
        card=layout.prepared(layout.CARD),
        preview=report(
            layout.prepared(layout.PREVIEW),
            caption="../report/preview.rst",
            category="Data",
            labels={"data set": "{dataset}", "figure": "sample"},
        ),
    log:
        "logs/prepare/{dataset}.log",
    benchmark:
        "logs/prepare/{dataset}.tsv"
    conda:
        "../envs/tenas.yaml"
    params:
        dataset=lambda wildcards: json.dumps(CONFIG["datasets"][wildcards.dataset]),
        folder=lambda wildcards, output: str(Path(output.card).parent),
        images=lambda wildcards: images_of(wildcards.dataset),
        code=lambda wildcards: code_digest(
            "tenas.stages.prepare", *[s for s in [CONFIG["datasets"][wildcards.dataset]["source"]] if ":" in s]
        ),
    shell:
        "tenas prepare {params.dataset:q} --out {params.folder:q} > {log:q} 2>&1"
