rule prepare:
    output:
        data=ensure("work/{dataset}/data.zarr.zip", non_empty=True),
    log:
        "logs/{dataset}/prepare.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        mem_mb=growing(16000),
        runtime=growing(60),
    params:
        settings=data_settings,
    script:
        "../scripts/prepare.py"


# A rule of its own: Snakemake deletes every output of a rule before it runs, so with the data
# artifact as the other output a missing whitening would train all networks again.
rule whitening:
    input:
        data="work/{dataset}/data.zarr.zip",
    output:
        whitening=ensure("results/{dataset}.whitening.zarr.zip", non_empty=True),
    log:
        "logs/{dataset}/whitening.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        mem_mb=mem_mb,
        runtime=growing(30),
    params:
        settings=data_settings,
    script:
        "../scripts/whitening.py"
