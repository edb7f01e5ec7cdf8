# The plan of the run: the config checked, and what each job is told and reads.
import sys

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

sys.path[:0] = [str(workflow.basedir), str(Path(workflow.basedir, "workflow"))]

from apm_core.errors import ConfigError
from apm_core.methods import entry
from plan import Plan, check_schema
from takeover import hold

SCHEMA = Path(workflow.basedir, "workflow/schemas/config.schema.yaml")

try:
    check_schema(config, yaml.safe_load(SCHEMA.read_text()))
    validate(config, str(SCHEMA))
    PLAN = Plan(config)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

if workflow.is_main_process:
    RUN_LOCK, found = hold(Path(".snakemake"))
    if found:
        logger.warning("A run in this folder was killed; going on where it stopped.")

DATASET = config["dataset"]["name"]
THREADS = config["compute"]["threads"]


wildcard_constraints:
    dataset=r"[A-Za-z0-9-]+(_[A-Za-z0-9-]+)*",
    ipc=r"[1-9]\d*",
    pool=r"teachers|aligned_teachers|experts|flat_experts",
    group=r"\d+",
    shard=r"\d+",
    method=r"(?!whitening\b)[a-z_]+",  # whose file would be called like a distilled set
    network=r"[a-z0-9_]+",
    protocol=r"own|hard|plain",


def gpus(wildcards):
    """GPUs that a job asks for."""
    return PLAN.gpus(local=workflow.local_exec)


def pool_files(pool):
    """The groups of a pool of networks trained on the full data."""
    return expand(
        "work/{dataset}/{pool}/{group}.zarr.zip",
        dataset=DATASET,
        pool=pool,
        group=PLAN.groups(pool),
    )


def pool_for_distillation(wildcards):
    """The networks that a method distils from."""
    pool = entry(wildcards.method).needs
    return pool_files(pool) if pool else []


def growing(amount):
    """A resource that grows with every attempt: a job that was killed for want of it gets more."""
    return lambda wildcards, attempt: amount * attempt


def distill_mem_mb(wildcards, input, attempt):
    """Memory of a distillation job, which holds the networks that it distils from."""
    return (16000 + int(1.5 * input.size_mb)) * attempt


def pool_for_labels(wildcards):
    """The teachers, for a method whose set they label."""
    pool = entry(wildcards.method).labelled_by
    return pool_files(pool) if pool else []


def shard_files(wildcards):
    """The shards of a distilled set."""
    PLAN.check_target(wildcards.dataset, wildcards.ipc)
    folder = "work/{dataset}/distill/{method}.ipc{ipc}/{shard}.zarr.zip"
    return expand(
        folder,
        dataset=wildcards.dataset,
        method=wildcards.method,
        ipc=PLAN.shard_ipc,
        shard=range(config["distill"]["shards"]),
    )


def evaluation_files(wildcards):
    """All that the results file is collected from, apart from the distilled sets."""
    PLAN.check_target(wildcards.dataset, wildcards.ipc)
    work, sets = f"work/{wildcards.dataset}", [f"ipc{wildcards.ipc}.{m}" for m in PLAN.methods]
    files = [f"{work}/evaluate/{s}/{n}.{p}.json" for s in sets for n, p in PLAN.protocols]
    files += [f"{work}/ceiling/{n}.json" for n in config["evaluate"]["ceiling"]["architectures"]]
    if config["nas"]["networks"]:
        files += [f"{work}/nas/{s}.json" for s in sets]
    return files


def distilled_sets(wildcards):
    """The product of every method."""
    PLAN.check_target(wildcards.dataset, wildcards.ipc)
    return expand(
        "results/{dataset}_ipc{ipc}.{method}.zarr.zip",
        dataset=wildcards.dataset,
        ipc=wildcards.ipc,
        method=PLAN.methods,
    )


def nas_reference_file(wildcards):
    """Where the reference ranking comes from."""
    reference = config["nas"]["reference"]
    trained = f"work/{wildcards.dataset}/nas/reference.json"
    return reference["table"] if reference["source"] == "table" else trained
