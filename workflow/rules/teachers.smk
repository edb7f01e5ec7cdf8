rule teachers:
    input:
        data="work/{dataset}/data.zarr.zip",
    output:
        pool=ensure("work/{dataset}/{pool}/{group}.zarr.zip", non_empty=True),
    log:
        "logs/{dataset}/{pool}.{group}.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        gpu=gpus,
        mem_mb=growing(16000),
        runtime=growing(240),
    params:
        settings=lambda wildcards: PLAN.pool(wildcards.pool),
    script:
        "../scripts/teachers.py"
