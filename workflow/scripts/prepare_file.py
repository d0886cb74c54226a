"""Read a user's file as a dataset."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb import datasets

    settings = datasets.FileSettings(path=snakemake.input[0], **snakemake.params.settings)
    datasets.write(snakemake.output[0], datasets.prepare_file(settings, snakemake.input[0]))
