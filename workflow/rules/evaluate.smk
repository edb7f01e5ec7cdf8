rule evaluate:
    input:
        data="work/{dataset}/data.zarr.zip",
        distilled="results/{dataset}_ipc{ipc}.{entry}.zarr.zip",
        teacher=online_teacher,
    output:
        scores=ensure("work/{dataset}/evaluate/ipc{ipc}.{entry}/{network}.json", non_empty=True),
    log:
        "logs/{dataset}/evaluate.ipc{ipc}.{entry}.{network}.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        gpu=gpus,
        mem_mb=mem_mb,
        runtime=growing(240),
    params:
        settings=lambda wildcards: PLAN.evaluate(wildcards.network).text,
    script:
        "../scripts/evaluate.py"


rule ceiling:
    input:
        data="work/{dataset}/data.zarr.zip",
    output:
        scores=ensure("work/{dataset}/ceiling/{network}.json", non_empty=True),
    log:
        "logs/{dataset}/ceiling.{network}.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        gpu=gpus,
        mem_mb=mem_mb,
        runtime=growing(240),
    params:
        settings=lambda wildcards: PLAN.ceiling(wildcards.network).text,
    script:
        "../scripts/ceiling.py"
