# Images in, a distilled set with proof of its quality out.
# README.md explains the use, docs/settings.md every setting, workflow/rules/ one stage each.
import os
from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")


configfile: str(Path(workflow.basedir, "config.yaml"))


# scripts find apm_core without an installation
IMPORTS = [str(workflow.basedir), *filter(None, [os.getenv("PYTHONPATH")])]
os.environ.update(PYTHONPATH=os.pathsep.join(IMPORTS))


include: "workflow/rules/common.smk"


onstart:
    # in a folder where nothing was started yet: whoever goes on with a run knows
    new = not Path(f"work/{DATASET}/data.zarr.zip").is_file()
    if workflow.is_main_process and new and (message := warning(config)):
        logger.warning(message)


rule all:
    default_target: True
    input:
        f"results/{DATASET}_ipc{SETTINGS.ipc}.json",


include: "workflow/rules/data.smk"
include: "workflow/rules/teachers.smk"
include: "workflow/rules/distill.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/nas.smk"
include: "workflow/rules/continual.smk"
include: "workflow/rules/report.smk"
