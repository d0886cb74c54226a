# The report: one page that opens offline, from scores, figures and what jobs left beside them.

LOOK = [
    ctdb_workflow.content_hash(f"{workflow.basedir}/src/ctdb/report/{name}")
    for name in ("report.html.j2", "report.css", "report.js")
]


rule report:
    input:
        scores=f"{RESULTS}/scores.parquet",
        figures=FIGURE_FILES,
        specs=[fit_file(*fit, "spec.yaml") for fit in FITS],
        published=f"{RESULTS}/reproduction.csv",
    output:
        f"{RESULTS}/report.html",
    log:
        f"{RESULTS}/logs/report.log",
    benchmark:
        f"{RESULTS}/benchmarks/report.tsv"
    threads: threads("report")
    resources:
        **needs("report"),
    params:
        run=plan_of_report,
        look=LOOK,
        code=code("report.py"),
    script:
        "../scripts/report.py"
