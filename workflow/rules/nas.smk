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
        mem_mb=mem_mb,
        runtime=growing(1440),
    params:
        settings=PLAN.nas_reference().text,
    script:
        "../scripts/nas_reference.py"


rule nas_proxy:
    input:
        data="work/{dataset}/data.zarr.zip",
        distilled="results/{dataset}_ipc{ipc}.{entry}.zarr.zip",
    output:
        ranking=ensure("work/{dataset}/nas/ipc{ipc}.{entry}.proxy.json", non_empty=True),
    log:
        "logs/{dataset}/nas.ipc{ipc}.{entry}.proxy.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        gpu=gpus,
        mem_mb=mem_mb,
        runtime=growing(720),
    params:
        settings=PLAN.nas_proxy().text,
    script:
        "../scripts/nas_proxy.py"


rule nas_short:
    input:
        data="work/{dataset}/data.zarr.zip",
    output:
        ranking=ensure("work/{dataset}/nas/short{images_per_class}.json", non_empty=True),
    log:
        "logs/{dataset}/nas.short{images_per_class}.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        gpu=gpus,
        mem_mb=mem_mb,
        runtime=growing(720),
    params:
        settings=PLAN.nas_short().text,
    script:
        "../scripts/nas_short.py"


rule nas:
    input:
        proxy="work/{dataset}/nas/ipc{ipc}.{entry}.proxy.json",
        short=nas_short_file,
        reference=nas_reference_file,
    output:
        scores=ensure("work/{dataset}/nas/ipc{ipc}.{entry}.json", non_empty=True),
    log:
        "logs/{dataset}/nas.ipc{ipc}.{entry}.log",
    localrule: True
    conda:
        "../../envs/apm.yaml"
    params:
        settings=PLAN.nas().text,
    script:
        "../scripts/nas.py"
