# Datasets: spikes simulated from a network's activity, generated, or prepared from a file or from other datasets.


rule dataset:
    input:
        lambda wildcards: [needed_file(*source) for source in PLAN["datasets"][wildcards.dataset]["sources"]],
    output:
        f"{RESULTS}/datasets/{{dataset}}.h5",
    log:
        f"{RESULTS}/logs/datasets/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/datasets/{{dataset}}.tsv"
    priority: 1
    threads: threads("dataset")
    resources:
        **needs("dataset"),
    params:
        settings=dataset_settings,
        folders=recording_folders,
        code=lambda wildcards: code(
            "dataset.py", MODULES["datasets"][PLAN["datasets"][wildcards.dataset]["settings"]["kind"]]
        ),
    script:
        "../scripts/dataset.py"
