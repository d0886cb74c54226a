"""Write one figure as the report shows it in three dimensions."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb.figures import FIGURES
    from ctdb.figures.base import make_interactive
    from ctdb.figures.planned import Files

    settings = snakemake.params.settings
    figure = FIGURES[settings["kind"]]
    files = Files.of(snakemake.params.needs, snakemake.input, snakemake.params.missing)
    make_interactive(figure, figure.Settings(**settings), files, snakemake.output[0].removesuffix(".json"))
