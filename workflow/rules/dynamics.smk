# Dynamics of the system behind a dataset and of the fits to it, compared.


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
