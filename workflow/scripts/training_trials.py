"""Draw the trials that train a network on a task."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb.files import write_hdf5
    from ctdb.tasks.base import build, training_trials

    splits = training_trials(build(snakemake.params.settings))
    arrays = {f"{split}_{name}": value for split, trials in splits.items() for name, value in trials.arrays().items()}
    write_hdf5(snakemake.output[0], arrays, {})
