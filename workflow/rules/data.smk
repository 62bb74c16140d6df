# Any data set into one small file of images that the search reads, with a card and a picture beside it.
rule prepare:
    input:
        lambda wildcards: file_of(wildcards.dataset),
    output:
        images="data/{dataset}/images.npy",
        labels="data/{dataset}/labels.npy",
        card="data/{dataset}/card.json",
        preview=report(
            "data/{dataset}/preview.png",
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
        code=code_digest(*CODE["prepare"]),
    shell:
        "tenas prepare {params.dataset:q} --out {params.folder:q} > {log:q} 2>&1"
