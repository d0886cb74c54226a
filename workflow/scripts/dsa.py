"""Distances between the system behind a dataset and all fits to it, by dynamical similarity analysis."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from pathlib import Path

    from ctdb import datasets
    from ctdb.dsa_scores import dsa_of
    from ctdb.files import write_hdf5, write_text
    from ctdb.settings import DsaSettings

    fits = list(zip(snakemake.params.labels, [Path(spec).parent for spec in snakemake.input.specs], strict=True))
    settings = DsaSettings(**snakemake.params.settings)
    arrays, facts, table = dsa_of(datasets.read(snakemake.input.dataset), fits, settings, snakemake.threads)
    write_hdf5(snakemake.output.matrix, arrays, facts)
    write_text(snakemake.output.scores, table.to_csv(index=False))
