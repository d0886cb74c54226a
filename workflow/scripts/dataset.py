"""Prepare one dataset from its sources."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb.datasets.hdf5 import write
    from ctdb.datasets.kind import DATASETS, FileBased

    settings = snakemake.params.settings
    kind = DATASETS[settings["kind"]]
    if issubclass(kind.Settings, FileBased):
        settings = settings | {"path": snakemake.input[0]}
    files = [*snakemake.input, *snakemake.params.folders]
    write(snakemake.output[0], kind.prepare(kind.Settings(**settings), files))
