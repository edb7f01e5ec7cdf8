rule teachers:
    input:
        data="work/{dataset}/data.zarr.zip",
    output:
        pool=ensure("work/{dataset}/pools/{pool}.{key}/{group}.zarr.zip", non_empty=True),
    log:
        "logs/{dataset}/{pool}.{key}.{group}.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        gpu=gpus,
        mem_mb=mem_mb,
        runtime=growing(240),
    params:
        settings=pool_settings,
    script:
        "../scripts/teachers.py"
