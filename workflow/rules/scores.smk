# Scores of each fit, and of the floor and ceiling of its dataset, gathered into one table.

WANTED_METRICS = set(MODULES["metrics"]) - COSTLY if PLAN["metrics"] is None else set(PLAN["metrics"])
METRIC_MODULES = sorted({MODULES["metrics"][metric] for metric in WANTED_METRICS | set(PLAN["also"])})


rule score_fit:
    input:
        dataset=f"{RESULTS}/datasets/{{dataset}}.h5",
        spec=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/spec.yaml",
        inferred=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/output.h5",
    output:
        f"{RESULTS}/scores/{{dataset}}/{{model}}/seed{{seed}}.csv",
    log:
        f"{RESULTS}/logs/scores/{{dataset}}/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/scores/{{dataset}}/{{model}}/seed{{seed}}.tsv"
    threads: threads("score_fit")
    resources:
        **needs("score_fit"),
    params:
        metrics=PLAN["metrics"],
        also=PLAN["also"],
        labels=lambda wildcards: labels_of(fit_of(wildcards)),
        code=code("score_fit.py", *METRIC_MODULES),
    script:
        "../scripts/score_fit.py"


rule score_anchors:
    input:
        f"{RESULTS}/datasets/{{dataset}}.h5",
    output:
        f"{RESULTS}/scores/{{dataset}}/anchors.csv",
    log:
        f"{RESULTS}/logs/scores/{{dataset}}/anchors.log",
    benchmark:
        f"{RESULTS}/benchmarks/scores/{{dataset}}/anchors.tsv"
    threads: threads("score_anchors")
    resources:
        **needs("score_anchors"),
    params:
        metrics=PLAN["metrics"],
        also=PLAN["also"],
        code=code("score_anchors.py", *METRIC_MODULES),
    script:
        "../scripts/score_anchors.py"


rule gather_scores:
    input:
        fits=[score_file(*fit) for fit in FITS],
        anchors=[score_file(dataset) for dataset in sorted({fit[0] for fit in FITS})],
        dynamics=DYNAMICS_SCORES,
    output:
        f"{RESULTS}/scores.parquet",
    log:
        f"{RESULTS}/logs/gather_scores.log",
    benchmark:
        f"{RESULTS}/benchmarks/gather_scores.tsv"
    threads: threads("gather_scores")
    resources:
        **needs("gather_scores"),
    params:
        code=code("gather_scores.py"),
    script:
        "../scripts/gather_scores.py"
