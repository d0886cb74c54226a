"""Fixed points, exponents and forecasts of the system behind a dataset; what it and a still system score."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from pathlib import Path

    from ctdb import datasets
    from ctdb.dynamics_scores import true_dynamics
    from ctdb.files import read_hdf5, write_text
    from ctdb.settings import DynamicsSettings
    from ctdb.tasks.base import TaskTrials, build

    network = trials = task = None
    if snakemake.input.network:
        network = Path(snakemake.input.network[0]).parent
        task, trials = build(snakemake.params.task), TaskTrials.of(read_hdf5(snakemake.input.trials[0])[0])
    table = true_dynamics(
        datasets.read(snakemake.input.dataset),
        network,
        DynamicsSettings(**snakemake.params.settings),
        snakemake.wildcards.dataset,
        Path(snakemake.output.scores).parent,
        task,
        trials,
    )
    write_text(snakemake.output.scores, table.to_csv(index=False))
