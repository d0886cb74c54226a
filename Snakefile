# Train networks on tasks, simulate spikes from them or take a user's file, fit models, compare dynamics, score, draw.
# What to do is said in one configuration file: config/config.yaml, or another one by `--configfile`.

from snakemake.utils import min_version

min_version("9.27")


# The environment is the .venv that `make` builds; this line says which Python a container would need.
container: "docker://python:3.11"


include: "workflow/rules/common.smk"


localrules:  # seconds of one core: on a cluster, done where Snakemake runs
    gather_scores,
    figure,
    interactive,
    reproduction,
    report,
    ibl_synthetic,


rule all:
    default_target: True
    input:
        NETWORK_FILES,
        DATASET_FILES,
        FIT_FILES,
        f"{RESULTS}/scores.parquet",
        FIGURE_FILES,
        f"{RESULTS}/reproduction.csv",
        f"{RESULTS}/report.html",


rule networks:
    input:
        NETWORK_FILES,


rule recordings:
    input:
        RECORDING_FILES,


rule datasets:
    input:
        DATASET_FILES,


rule fits:
    input:
        FIT_FILES,


rule dynamics:
    input:
        DYNAMICS_SCORES,


rule scores:
    input:
        f"{RESULTS}/scores.parquet",


rule figures:
    input:
        FIGURE_FILES,
        f"{RESULTS}/reproduction.csv",


include: "workflow/rules/networks.smk"
include: "workflow/rules/recordings.smk"
include: "workflow/rules/datasets.smk"
include: "workflow/rules/fits.smk"
include: "workflow/rules/dynamics.smk"
include: "workflow/rules/scores.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/report.smk"
