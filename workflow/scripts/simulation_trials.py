"""Draw the trials that a trained network is run on."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb.files import write_hdf5
    from ctdb.tasks.base import build, simulation_trials

    write_hdf5(snakemake.output[0], simulation_trials(build(snakemake.params.settings)).arrays(), {})
