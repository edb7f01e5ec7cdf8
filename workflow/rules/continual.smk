rule continual:
    input:
        data="work/{dataset}/data.zarr.zip",
        distilled="results/{dataset}_ipc{ipc}.{entry}.zarr.zip",
    output:
        scores=ensure("work/{dataset}/continual/ipc{ipc}.{entry}.json", non_empty=True),
    log:
        "logs/{dataset}/continual.ipc{ipc}.{entry}.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        gpu=gpus,
        mem_mb=mem_mb,
        runtime=growing(240),
    params:
        settings=PLAN.continual().text,
    script:
        "../scripts/continual.py"


rule continual_curves:
    input:
        distilled=distilled_sets,
        scores=continual_files,
    output:
        results=ensure("results/{dataset}_ipc{ipc}.continual.json", non_empty=True),
        figure=report(
            "results/{dataset}_ipc{ipc}.continual.svg",
            category="Continual learning",
            caption="../report/continual.rst",
            labels={"dataset": "{dataset}", "images per class": "{ipc}"},
        ),
    log:
        "logs/{dataset}/continual_curves.ipc{ipc}.log",
    localrule: True
    conda:
        "../../envs/apm.yaml"
    params:
        settings=PLAN.collect().text,
    script:
        "../scripts/continual_curves.py"
