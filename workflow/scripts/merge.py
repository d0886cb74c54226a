"""Merge what was inferred of overlapping windows into signals over the recording."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb import datasets
    from ctdb.datasets.continuous import merge_fit
    from ctdb.files import read_hdf5, write_hdf5

    inferred, facts = read_hdf5(snakemake.input.inferred)
    merged = merge_fit(datasets.read(snakemake.input.dataset), inferred)
    write_hdf5(snakemake.output[0], merged, {"format": "ctdb-continuous-1", "status": facts["status"]})
