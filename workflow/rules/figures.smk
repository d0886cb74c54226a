# Figures, from scores and saved outputs only.

STYLE = ctdb_workflow.content_hash(f"{workflow.basedir}/src/ctdb/figures/ctdb.mplstyle")


rule figure:
    input:
        lambda wildcards: [needed_file(*need) for need in PLAN["figures"][wildcards.figure]["needs"]],
    output:
        pdf=f"{RESULTS}/figures/{{figure}}.pdf",
        png=f"{RESULTS}/figures/{{figure}}.png",
        table=f"{RESULTS}/figures/{{figure}}.csv",
        caption=f"{RESULTS}/figures/{{figure}}.txt",
    log:
        f"{RESULTS}/logs/figures/{{figure}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/{{figure}}.tsv"
    threads: threads("figure")
    resources:
        **needs("figure"),
    params:
        settings=lambda wildcards: PLAN["figures"][wildcards.figure]["settings"],
        needs=lambda wildcards: PLAN["figures"][wildcards.figure]["needs"],
        missing=lambda wildcards: PLAN["figures"][wildcards.figure]["missing"],
        words=lambda wildcards: figure_words(wildcards.figure),
        style=STYLE,
        code=lambda wildcards: code(
            "figure.py", MODULES["figures"][PLAN["figures"][wildcards.figure]["settings"]["kind"]]
        ),
    script:
        "../scripts/figure.py"


rule interactive:
    input:
        lambda wildcards: [needed_file(*need) for need in PLAN["figures"][wildcards.figure]["needs"]],
    output:
        f"{RESULTS}/figures/{{figure}}.json",
    log:
        f"{RESULTS}/logs/figures/{{figure}}.interactive.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures/{{figure}}.interactive.tsv"
    wildcard_constraints:
        figure="|".join(INTERACTIVE) or "(?!)",
    threads: threads("interactive")
    resources:
        **needs("interactive"),
    params:
        settings=lambda wildcards: PLAN["figures"][wildcards.figure]["settings"],
        needs=lambda wildcards: PLAN["figures"][wildcards.figure]["needs"],
        missing=lambda wildcards: PLAN["figures"][wildcards.figure]["missing"],
        words=lambda wildcards: figure_words(wildcards.figure),
        style=STYLE,
        code=lambda wildcards: code(
            "interactive.py", MODULES["figures"][PLAN["figures"][wildcards.figure]["settings"]["kind"]]
        ),
    script:
        "../scripts/interactive.py"


rule reproduction:
    input:
        lambda wildcards: [needed_file(*need) for figure in REPRODUCING for need in PLAN["figures"][figure]["needs"]],
    output:
        f"{RESULTS}/reproduction.csv",
    log:
        f"{RESULTS}/logs/reproduction.log",
    benchmark:
        f"{RESULTS}/benchmarks/reproduction.tsv"
    threads: threads("reproduction")
    resources:
        **needs("reproduction"),
    params:
        figures={figure: PLAN["figures"][figure] for figure in REPRODUCING},
        behind=settings_behind(REPRODUCING),
        published=[figure_words(figure) for figure in REPRODUCING],
        code=code(
            "reproduction.py",
            *sorted({MODULES["figures"][PLAN["figures"][figure]["settings"]["kind"]] for figure in REPRODUCING}),
        ),
    script:
        "../scripts/reproduction.py"
