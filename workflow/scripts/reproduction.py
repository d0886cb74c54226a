"""List the published numbers beside ours."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb.errors import MissingError
    from ctdb.figures import FIGURES
    from ctdb.figures.planned import Files
    from ctdb.figures.published import NOTHING, comparison, reproduction
    from ctdb.files import write_text

    compared, paths = {}, iter(snakemake.input)
    for name, figure in snakemake.params.figures.items():
        settings = figure["settings"]
        kind = FIGURES[settings["kind"]]
        files = Files.of(figure["needs"], [next(paths) for _ in figure["needs"]], figure["missing"])
        try:
            rows = kind.reproduction(kind.Settings(**settings), files)
        except MissingError as error:
            print(f"{name}: missing: {error}")
            rows = comparison(settings["kind"], NOTHING)
        compared[name] = settings["kind"], rows
    table = reproduction(compared, lambda dataset, model: snakemake.params.behind.get(f"{dataset} {model}", {}))
    write_text(snakemake.output[0], table.to_csv(index=False, float_format="%.6g"))
