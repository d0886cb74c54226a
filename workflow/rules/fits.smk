# One model fitted to one dataset with one seed.


rule fit:
    input:
        f"{RESULTS}/datasets/{{dataset}}.h5",
    output:
        weights=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/weights.safetensors",
        spec=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/spec.yaml",
        history=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/history.csv",
        inferred=f"{RESULTS}/fits/{{dataset}}/{{model}}/seed{{seed}}/output.h5",
    log:
        f"{RESULTS}/logs/fits/{{dataset}}/{{model}}/seed{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fits/{{dataset}}/{{model}}/seed{{seed}}.tsv"
    params:
        spec=lambda wildcards: fit_of(wildcards)["spec"],
        code=lambda wildcards: code("fit.py", MODULES["models"][fit_of(wildcards)["kind"]]),
    script:
        "../scripts/fit.py"
