"""Fixed points, exponents, flow and forecasts of one fit, against those of the system behind its dataset."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from pathlib import Path

    from ctdb import datasets
    from ctdb.dynamics_scores import fit_dynamics
    from ctdb.files import write_text
    from ctdb.settings import DynamicsSettings

    table = fit_dynamics(
        datasets.read(snakemake.input.dataset),
        Path(snakemake.input.spec).parent,
        Path(snakemake.input.network[0]).parent if snakemake.input.network else None,
        Path(snakemake.input.facts).parent,
        DynamicsSettings(**snakemake.params.settings),
        snakemake.params.labels,
        Path(snakemake.output.scores).parent,
    )
    write_text(snakemake.output.scores, table.to_csv(index=False))
