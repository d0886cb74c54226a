# Dynamics of the system behind a dataset and of the fits to it, compared.


def activity_of(dataset):
    """Network, seed and variant behind a dataset; None where there is no network."""
    sources = PLAN["datasets"][dataset]["sources"]
    return next((names for what, *names in sources if what == "activity"), None)


def true_network(wildcards):
    """Files of the network behind a dataset; none where there is no network."""
    activity = activity_of(wildcards.dataset)
    names = ("weights.safetensors", "spec.yaml") if activity else ()
    return [network_file(*activity[:2], name) for name in names]


def true_trials(wildcards):
    """Simulation trials of the network behind a dataset, which say how its body begins; none without a network."""
    activity = activity_of(wildcards.dataset)
    variant = f"@{activity[2]}" if activity and activity[2] else ""
    return [task_file(activity[0], f"simulate{variant}")] if activity else []


def true_task(wildcards):
    activity = activity_of(wildcards.dataset)
    return task_settings(task_of(activity[0]), "simulate", activity[2]) if activity else None


def true_code(script):
    """Params function: code of a rule that runs the network behind a dataset, with its task."""

    def of(wildcards):
        activity = activity_of(wildcards.dataset)
        if activity is None:
            return code(script)
        task = PLAN["tasks"][task_of(activity[0])]["kind"]
        network = PLAN["networks"][activity[0]]["kind"]
        own = code(script, MODULES["networks"][network], MODULES["tasks"][task])
        return f"{own} {ctdb_workflow.versions(PLAN, task_of(activity[0]))}".strip()

    return of


def own_dynamics(wildcards):
    """What is done with the dynamics of each system by itself, which settings of their DSA do not change."""
    return {key: value for key, value in PLAN["dynamics"][wildcards.dataset].items() if key != "dsa"}


def fit_code(wildcards):
    """Code of a rule that runs a fit and the network behind its dataset."""
    activity = activity_of(wildcards.dataset)
    network = [MODULES["networks"][PLAN["networks"][activity[0]]["kind"]]] if activity else []
    return code("fit_dynamics.py", *network, *fit_of(wildcards)["modules"])


rule true_dynamics:
    input:
        dataset=f"{RESULTS}/datasets/{{dataset}}.h5",
        network=true_network,
        trials=true_trials,
    output:
        points=f"{RESULTS}/dynamics/{{dataset}}/fixed_points.h5",
        facts=f"{RESULTS}/dynamics/{{dataset}}/dynamics.h5",
        scores=f"{RESULTS}/dynamics/{{dataset}}/scores.csv",
    log:
        f"{RESULTS}/logs/dynamics/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/dynamics/{{dataset}}.tsv"
    threads: threads("true_dynamics")
    resources:
        **needs("true_dynamics"),
    params:
        settings=own_dynamics,
        task=true_task,
        code=true_code("true_dynamics.py"),
    script:
        "../scripts/true_dynamics.py"


rule fit_dynamics:
    input:
        dataset=f"{RESULTS}/datasets/{{dataset}}.h5",
        weights=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/weights.safetensors",
        spec=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/spec.yaml",
        inferred=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/output.h5",
        network=true_network,
        points=f"{RESULTS}/dynamics/{{dataset}}/fixed_points.h5",
        facts=f"{RESULTS}/dynamics/{{dataset}}/dynamics.h5",
    output:
        points=f"{RESULTS}/dynamics/{{dataset}}/{{model}}/seed{{seed}}/fixed_points.h5",
        facts=f"{RESULTS}/dynamics/{{dataset}}/{{model}}/seed{{seed}}/dynamics.h5",
        scores=f"{RESULTS}/dynamics/{{dataset}}/{{model}}/seed{{seed}}/scores.csv",
    log:
        f"{RESULTS}/logs/dynamics/{{dataset}}/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/dynamics/{{dataset}}/{{model}}/seed{{seed}}.tsv"
    threads: threads("fit_dynamics")
    resources:
        **needs("fit_dynamics"),
    params:
        settings=own_dynamics,
        labels=lambda wildcards: labels_of(fit_of(wildcards)),
        code=fit_code,
    script:
        "../scripts/fit_dynamics.py"


rule dsa:
    input:
        dataset=f"{RESULTS}/datasets/{{dataset}}.h5",
        specs=lambda wildcards: [fit_file(*fit, "spec.yaml") for fit in DYNAMICS_FITS if fit[0] == wildcards.dataset],
        inferred=lambda wildcards: [fit_file(*fit, "output.h5") for fit in DYNAMICS_FITS if fit[0] == wildcards.dataset],
    output:
        matrix=f"{RESULTS}/dynamics/{{dataset}}/dsa.h5",
        scores=f"{RESULTS}/dynamics/{{dataset}}/dsa.csv",
    log:
        f"{RESULTS}/logs/dynamics/{{dataset}}.dsa.log",
    benchmark:
        f"{RESULTS}/benchmarks/dynamics/{{dataset}}.dsa.tsv"
    threads: threads("dsa")
    resources:
        **needs("dsa"),
    params:
        settings=lambda wildcards: PLAN["dynamics"][wildcards.dataset]["dsa"],
        labels=lambda wildcards: [labels_of(FITS[fit]) for fit in DYNAMICS_FITS if fit[0] == wildcards.dataset],
        code=code("dsa.py"),
    script:
        "../scripts/dsa.py"
