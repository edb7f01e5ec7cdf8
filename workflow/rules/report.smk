rule collect:
    input:
        data="work/{dataset}/data.zarr.zip",
        distilled=distilled_sets,
        shards=first_shards,
        scores=score_files,
    output:
        results=ensure("results/{dataset}_ipc{ipc}.json", non_empty=True),
        page=report(
            "results/{dataset}_ipc{ipc}.html",
            category="Results",
            caption="../report/page.rst",
            labels={"dataset": "{dataset}", "images per class": "{ipc}"},
        ),
        gallery=report(
            "results/{dataset}_ipc{ipc}.png",
            category="Images",
            caption="../report/gallery.rst",
            labels={"dataset": "{dataset}", "images per class": "{ipc}"},
        ),
    log:
        "logs/{dataset}/collect.ipc{ipc}.log",
    localrule: True
    conda:
        "../../envs/apm.yaml"
    params:
        settings=PLAN.collect().text,
    script:
        "../scripts/collect.py"
