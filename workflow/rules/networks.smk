# Trials of a task; a network trained on them; its activity on the simulation trials, the ground truth from then on.


rule training_trials:
    output:
        f"{RESULTS}/task_data/{{task}}/train.h5",
    log:
        f"{RESULTS}/logs/task_data/{{task}}/train.log",
    benchmark:
        f"{RESULTS}/benchmarks/task_data/{{task}}/train.tsv"
    priority: 2
    threads: threads("training_trials")
    resources:
        **needs("training_trials"),
    params:
        settings=lambda wildcards: task_settings(wildcards.task, "train"),
        code=task_code("training_trials.py"),
    script:
        "../scripts/training_trials.py"


rule simulation_trials:
    output:
        f"{RESULTS}/task_data/{{task}}/simulate{{variant}}.h5",
    log:
        f"{RESULTS}/logs/task_data/{{task}}/simulate{{variant}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/task_data/{{task}}/simulate{{variant}}.tsv"
    threads: threads("simulation_trials")
    resources:
        **needs("simulation_trials"),
    params:
        settings=lambda wildcards: task_settings(wildcards.task, "simulate", variant_of(wildcards)),
        code=task_code("simulation_trials.py"),
    script:
        "../scripts/simulation_trials.py"


rule train_network:
    input:
        lambda wildcards: task_file(wildcards.network, "train"),
    output:
        weights=f"{RESULTS}/networks/{{network}}/seed{{seed}}/weights.safetensors",
        spec=f"{RESULTS}/networks/{{network}}/seed{{seed}}/spec.yaml",
        history=f"{RESULTS}/networks/{{network}}/seed{{seed}}/history.csv",
    log:
        f"{RESULTS}/logs/networks/{{network}}/seed{{seed}}/train.log",
    benchmark:
        f"{RESULTS}/benchmarks/networks/{{network}}/seed{{seed}}/train.tsv"
    priority: 2  # what takes longest and all else waits for
    threads: threads("train_network")
    resources:
        **needs("train_network"),
    params:
        settings=network_settings,
        task=lambda wildcards: task_settings(task_of(wildcards.network), "train"),
        code=network_code("train_network.py"),
    script:
        "../scripts/train_network.py"


rule network_activity:
    input:
        weights=f"{RESULTS}/networks/{{network}}/seed{{seed}}/weights.safetensors",
        spec=f"{RESULTS}/networks/{{network}}/seed{{seed}}/spec.yaml",
        trials=lambda wildcards: task_file(wildcards.network, f"simulate{wildcards.variant}"),
    output:
        f"{RESULTS}/networks/{{network}}/seed{{seed}}/activity{{variant}}.h5",
    log:
        f"{RESULTS}/logs/networks/{{network}}/seed{{seed}}/activity{{variant}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/networks/{{network}}/seed{{seed}}/activity{{variant}}.tsv"
    priority: 1
    threads: threads("network_activity")
    resources:
        **needs("network_activity"),
    params:
        task=lambda wildcards: task_settings(task_of(wildcards.network), "simulate", variant_of(wildcards)),
        code=network_code("network_activity.py"),
    script:
        "../scripts/network_activity.py"
