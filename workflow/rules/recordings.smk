# Recordings: made up or fetched to a folder, and the manifest that names their files.


rule ibl_synthetic:
    output:
        directory(f"{RESULTS}/recordings/{{recording}}/cache"),
    log:
        f"{RESULTS}/logs/recordings/{{recording}}/synthetic.log",
    benchmark:
        f"{RESULTS}/benchmarks/recordings/{{recording}}/synthetic.tsv"
    params:
        settings=lambda wildcards: recording_settings(wildcards.recording, *SYNTHETIC),
        code=code("ibl_synthetic.py"),
    script:
        "../scripts/ibl_synthetic.py"


# On the machine where snakemake runs: the nodes of a cluster often reach no other machine.
rule ibl_fetch:
    input:
        manifest=lambda wildcards: [
            str(data_path(path)) for path in recording_settings(wildcards.recording, "manifest").values() if path
        ],
        cache=lambda wildcards: (
            [recording_folder(wildcards.recording)]
            if PLAN["recordings"][wildcards.recording]["kind"] == "ibl_synthetic"
            else []
        ),
    output:
        f"{RESULTS}/recordings/{{recording}}.json",
    log:
        f"{RESULTS}/logs/recordings/{{recording}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/recordings/{{recording}}.tsv"
    priority: 2  # what takes longest and all else waits for
    localrule: True
    params:
        settings=lambda wildcards: recording_settings(wildcards.recording),
        how=lambda wildcards, resources: recording_settings(wildcards.recording, *HOW),
        folder=lambda wildcards, resources: recording_folder(wildcards.recording),
        code=code("ibl_fetch.py"),
    script:
        "../scripts/ibl_fetch.py"
