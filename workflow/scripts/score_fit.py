"""Score one fit."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from pathlib import Path

    from ctdb import datasets
    from ctdb.files import write_text
    from ctdb.scores import score_fit

    dataset = datasets.read(snakemake.input.dataset)
    fit, params = Path(snakemake.input.spec).parent, snakemake.params
    table = score_fit(dataset, fit, params.metrics, params.labels, params.also)
    write_text(snakemake.output[0], table.to_csv(index=False))
