# One model fitted to one dataset with one seed, and merged where the dataset is windows of a recording.


rule fit:
    input:
        dataset=f"{RESULTS}/datasets/{{dataset}}.h5",
        initial=initial_fit,
    output:
        weights=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/weights.safetensors",
        spec=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/spec.yaml",
        history=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/history.csv",
        inferred=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/output.h5",
    log:
        f"{RESULTS}/logs/fits/{{dataset}}/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fits/{{dataset}}/{{model}}/seed{{seed}}.tsv"
    threads: threads("fit")
    resources:
        **needs("fit"),
    params:
        spec=lambda wildcards: fit_of(wildcards)["spec"],
        code=lambda wildcards: code("fit.py", *fit_of(wildcards)["modules"]),
    script:
        "../scripts/fit.py"


rule merge:
    input:
        dataset=f"{RESULTS}/datasets/{{dataset}}.h5",
        inferred=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/output.h5",
    output:
        f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/continuous.h5",
    log:
        f"{RESULTS}/logs/fits/{{dataset}}/{{model}}/seed{{seed}}.merge.log",
    benchmark:
        f"{RESULTS}/benchmarks/fits/{{dataset}}/{{model}}/seed{{seed}}.merge.tsv"
    threads: threads("merge")
    resources:
        **needs("merge"),
    params:
        code=code("merge.py"),
    script:
        "../scripts/merge.py"
