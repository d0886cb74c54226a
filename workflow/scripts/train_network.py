"""Train one network on its task."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from pathlib import Path

    from ctdb.files import read_hdf5
    from ctdb.networks.train import train_network
    from ctdb.tasks.base import TaskTrials, build

    arrays, _ = read_hdf5(snakemake.input[0])
    trials = {
        split: TaskTrials.of(
            {key.removeprefix(f"{split}_"): value for key, value in arrays.items() if key.startswith(f"{split}_")}
        )
        for split in ("train", "valid")
    }
    out = Path(snakemake.output.spec).parent
    train_network(snakemake.params.settings, build(snakemake.params.task), trials, int(snakemake.wildcards.seed), out)
