# Datasets: spikes simulated from a network's activity, or a user's own file.


rule simulate_dataset:
    input:
        lambda wildcards: network_file(
            dataset_settings(wildcards)["network"], dataset_settings(wildcards)["network_seed"], "activity.h5"
        ),
    output:
        f"{RESULTS}/datasets/{{dataset}}.h5",
    log:
        f"{RESULTS}/logs/datasets/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/datasets/{{dataset}}.tsv"
    wildcard_constraints:
        dataset=one_of(SIMULATED),
    priority: 1
    params:
        settings=dataset_settings,
        code=code("simulate_dataset.py"),
    script:
        "../scripts/simulate_dataset.py"


rule prepare_file:
    input:
        lambda wildcards: str(data_path(PLAN["datasets"][wildcards.dataset]["path"])),
    output:
        f"{RESULTS}/datasets/{{dataset}}.h5",
    log:
        f"{RESULTS}/logs/datasets/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/datasets/{{dataset}}.tsv"
    wildcard_constraints:
        dataset=one_of(FROM_FILE),
    params:
        settings=dataset_settings,
        code=code("prepare_file.py"),
    script:
        "../scripts/prepare_file.py"
