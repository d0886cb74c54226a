"""Draw one figure."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb.figures import FIGURES
    from ctdb.figures.base import make

    settings = snakemake.params.settings
    figure = FIGURES[settings["kind"]]
    files = {tuple(need): file for need, file in zip(snakemake.params.needs, snakemake.input, strict=True)}
    make(figure, figure.Settings(**settings), files, snakemake.output.pdf.removesuffix(".pdf"))
