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
        settings=PLAN.prepare(),
    script:
        "../scripts/prepare.py"
