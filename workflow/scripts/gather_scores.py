"""Gather the scores of all fits and anchors into one table."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    import io

    from ctdb.files import write_bytes
    from ctdb.scores import gather

    buffer = io.BytesIO()
    gather([*snakemake.input.fits, *snakemake.input.anchors, *snakemake.input.dynamics]).to_parquet(buffer, index=False)
    write_bytes(snakemake.output[0], buffer.getvalue())
