"""Fit one model to one dataset. A fit whose loss diverges is a result: its status and reason go into the scores."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    import sys
    from pathlib import Path

    from ctdb import datasets
    from ctdb.errors import TrainingDivergedError
    from ctdb.models.base import build
    from ctdb.training.fitting import fit

    dataset, spec = datasets.read(snakemake.input.dataset), snakemake.params.spec
    initial = Path(snakemake.input.initial[0]).parent if snakemake.input.initial else None
    try:
        fit(build(spec, dataset, initial), dataset, spec, out=Path(snakemake.output.spec).parent)
    except TrainingDivergedError as error:
        print(f"diverged: {error}", file=sys.stderr)
