"""Score the floor and the ceiling of one dataset."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb import datasets
    from ctdb.files import write_text
    from ctdb.scores import score_anchors

    dataset = datasets.read(snakemake.input[0])
    table = score_anchors(dataset, snakemake.params.metrics, snakemake.wildcards.dataset, snakemake.params.also)
    write_text(snakemake.output[0], table.to_csv(index=False))
