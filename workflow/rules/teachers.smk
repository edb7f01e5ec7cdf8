rule teachers:
    input:
        data="work/{dataset}/data.zarr.zip",
    output:
        pool=ensure("work/{dataset}/teachers/{group}.zarr.zip", non_empty=True),
    log:
        "logs/{dataset}/teachers.{group}.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        gpu=gpus,
        mem_mb=16000,
        runtime=240,
    params:
        settings=PLAN.teachers(),
    script:
        "../scripts/teachers.py"
