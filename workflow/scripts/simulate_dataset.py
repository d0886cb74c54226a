"""Simulate spikes from the saved activity of a network."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb import datasets
    from ctdb.simulation import SimulationSettings, simulate

    settings = SimulationSettings(**snakemake.params.settings)
    datasets.write(snakemake.output[0], simulate(snakemake.input[0], settings))
