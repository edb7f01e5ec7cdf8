rule nas_reference:
    input:
        data="work/{dataset}/data.zarr.zip",
    output:
        ranking=ensure("work/{dataset}/nas/reference.json", non_empty=True),
    log:
        "logs/{dataset}/nas.reference.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        gpu=gpus,
        mem_mb=growing(16000),
        runtime=growing(1440),
    params:
        settings=PLAN.nas_reference(),
    script:
        "../scripts/nas_reference.py"


rule nas_proxy:
    input:
        data="work/{dataset}/data.zarr.zip",
        distilled="results/{dataset}_ipc{ipc}.{method}.zarr.zip",
    output:
        ranking=ensure("work/{dataset}/nas/ipc{ipc}.{method}.proxy.json", non_empty=True),
    log:
        "logs/{dataset}/nas.ipc{ipc}.{method}.proxy.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        gpu=gpus,
        mem_mb=growing(16000),
        runtime=growing(720),
    params:
        settings=PLAN.nas_proxy(),
    script:
        "../scripts/nas_proxy.py"


rule nas:
    input:
        proxy="work/{dataset}/nas/ipc{ipc}.{method}.proxy.json",
        reference=nas_reference_file,
    output:
        scores=ensure("work/{dataset}/nas/ipc{ipc}.{method}.json", non_empty=True),
    log:
        "logs/{dataset}/nas.ipc{ipc}.{method}.log",
    localrule: True
    conda:
        "../../envs/apm.yaml"
    params:
        settings=PLAN.nas(),
    script:
        "../scripts/nas.py"
