"""Write the report of a run."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb.report import write

    run = snakemake.params.run
    write(run["plan"], run["config"], run["name"], snakemake.input.published)
