"""Write one figure as the report shows it in three dimensions."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb.figures import FIGURES
    from ctdb.figures.base import make_interactive

    settings = snakemake.params.settings
    figure = FIGURES[settings["kind"]]
    files = {tuple(need): file for need, file in zip(snakemake.params.needs, snakemake.input, strict=True)}
    make_interactive(figure, figure.Settings(**settings), files, snakemake.output[0].removesuffix(".json"))
