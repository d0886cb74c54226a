# Trials of a task; a network trained on them; its activity on the simulation trials, the ground truth from then on.


rule task_data:
    output:
        train=f"{RESULTS}/task_data/{{task}}/train.h5",
        simulate=f"{RESULTS}/task_data/{{task}}/simulate.h5",
    log:
        f"{RESULTS}/logs/task_data/{{task}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/task_data/{{task}}.tsv"
    params:
        settings=lambda wildcards: PLAN["tasks"][wildcards.task],
        code=lambda wildcards: code("task_data.py", MODULES["tasks"][PLAN["tasks"][wildcards.task]["kind"]]),
    script:
        "../scripts/task_data.py"


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
    priority: 1
    params:
        settings=network_settings,
        task=lambda wildcards: task_of(wildcards.network),
        code=lambda wildcards: code(
            "train_network.py",
            MODULES["networks"][PLAN["networks"][wildcards.network]["kind"]],
            MODULES["tasks"][task_of(wildcards.network)["kind"]],
        ),
    script:
        "../scripts/train_network.py"


rule network_activity:
    input:
        weights=f"{RESULTS}/networks/{{network}}/seed{{seed}}/weights.safetensors",
        spec=f"{RESULTS}/networks/{{network}}/seed{{seed}}/spec.yaml",
        trials=lambda wildcards: task_file(wildcards.network, "simulate"),
    output:
        f"{RESULTS}/networks/{{network}}/seed{{seed}}/activity.h5",
    log:
        f"{RESULTS}/logs/networks/{{network}}/seed{{seed}}/activity.log",
    benchmark:
        f"{RESULTS}/benchmarks/networks/{{network}}/seed{{seed}}/activity.tsv"
    priority: 1
    params:
        task=lambda wildcards: task_of(wildcards.network),
        code=lambda wildcards: code(
            "network_activity.py",
            MODULES["networks"][PLAN["networks"][wildcards.network]["kind"]],
            MODULES["tasks"][task_of(wildcards.network)["kind"]],
        ),
    script:
        "../scripts/network_activity.py"
