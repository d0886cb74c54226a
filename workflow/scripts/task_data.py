"""Draw the trials that train a network on a task, and those it is simulated on."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb.files import write_hdf5
    from ctdb.tasks.base import build, simulation_trials, training_trials

    task = build(snakemake.params.settings)
    train = {
        f"{split}_{name}": value
        for split, trials in training_trials(task).items()
        for name, value in trials.arrays().items()
    }
    write_hdf5(snakemake.output.train, train, {})
    write_hdf5(snakemake.output.simulate, simulation_trials(task).arrays(), {})
