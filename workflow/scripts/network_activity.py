"""Run one trained network over the simulation trials and save its states: the ground truth from then on."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from pathlib import Path

    from ctdb.files import read_hdf5
    from ctdb.networks.train import record_activity
    from ctdb.tasks.base import TaskTrials, build

    trials, _ = read_hdf5(snakemake.input.trials)
    record_activity(
        Path(snakemake.input.spec).parent,
        build(snakemake.params.task),
        TaskTrials.of(trials),
        int(snakemake.wildcards.seed),
        snakemake.output[0],
    )
