"""Make up a session, as files and tables of ONE."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from pathlib import Path

    from ctdb.datasets.ibl.synthetic import SyntheticSettings, write_session

    write_session(Path(snakemake.output[0]), SyntheticSettings(**snakemake.params.settings))
