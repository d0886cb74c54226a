"""Fetch the files of one recording, and write the manifest that names them."""

from ctdb.jobs import job

with job(snakemake.log[0], snakemake.threads):
    from ctdb.datasets.ibl.fetch import fetch
    from ctdb.datasets.ibl.manifest import read_manifest, write_manifest
    from ctdb.datasets.ibl.recording import RECORDINGS

    settings = RECORDINGS[snakemake.params.settings["kind"]](**snakemake.params.settings | snakemake.params.how)
    known = read_manifest(snakemake.input.manifest[0]) if snakemake.input.manifest else None
    write_manifest(snakemake.output[0], fetch(settings, snakemake.params.folder, known))
