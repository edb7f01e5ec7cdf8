rule distill:
    input:
        data="work/{dataset}/data.zarr.zip",
        teachers=pool_for_distillation,
        files=files_of_entry,
    output:
        shard=ensure(SHARD, non_empty=True),
    log:
        "logs/{dataset}/distill.{entry}.ipc{ipc}.{shard}.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        gpu=gpus,
        mem_mb=mem_mb,
        runtime=growing(720),
    params:
        settings=lambda wildcards: PLAN.distill(wildcards.entry).text,
    script:
        "../scripts/distill.py"


rule merge:
    input:
        data="work/{dataset}/data.zarr.zip",
        teachers=pool_for_labels,
        shards=shard_files,
        # not read, only to lie beside the set; a newer file alone changes no set
        whitening=ancient("results/{dataset}.whitening.zarr.zip"),
    output:
        distilled=ensure("results/{dataset}_ipc{ipc}.{entry}.zarr.zip", non_empty=True),
    log:
        "logs/{dataset}/merge.{entry}.ipc{ipc}.log",
    conda:
        "../../envs/apm.yaml"
    threads: THREADS
    resources:
        mem_mb=mem_mb,
        runtime=growing(30),
    params:
        settings=lambda wildcards: PLAN.merge(wildcards.entry).text,
    script:
        "../scripts/merge.py"
