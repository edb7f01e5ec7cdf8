# The plan of the run: the config checked, and what each job is told and reads.
import sys

from snakemake.exceptions import WorkflowError

sys.path[:0] = [str(workflow.basedir), str(Path(workflow.basedir, "workflow"))]

from apm_core.errors import ConfigError
from apm_core.settings.plan import Plan
from apm_core.settings.run import ENTRY_NAME, RESERVED, RunSettings
from apm_core.settings.training import POOLS
from forewarn import warning
from gpu import gpus_of
from takeover import hold

try:
    PLAN = Plan(RunSettings.of(config))
except ConfigError as error:
    raise WorkflowError(str(error)) from None

if workflow.is_main_process:
    RUN_LOCK, found = hold(Path(".snakemake"))
    if found:
        logger.warning("A run in this folder was killed; going on where it stopped.")

SETTINGS = PLAN.settings
DATASET = SETTINGS.dataset.name
THREADS = SETTINGS.compute.threads
SHARD = "work/{dataset}/distill/{entry}.ipc{ipc}/{shard}.zarr.zip"


wildcard_constraints:
    dataset=r"[A-Za-z0-9-]+(_[A-Za-z0-9-]+)*",
    ipc=r"[1-9]\d*",
    pool="|".join(POOLS),
    key=r"[0-9a-f]+",
    group=r"\d+",
    shard=r"\d+",
    images_per_class=r"[1-9]\d*",
    entry=rf"(?!({'|'.join(RESERVED)})\b){ENTRY_NAME}",
    network=r"[a-z0-9_]+",


def gpus(wildcards):
    """GPUs that a job asks for."""
    return gpus_of(SETTINGS.compute, local=workflow.local_exec)


def data_settings(wildcards):
    """The settings of the data artifact, which the config makes for its own data set alone."""
    PLAN.require_dataset(wildcards.dataset)
    return PLAN.prepare().text


def pool_files(pool):
    """The groups of a pool of networks trained on the full data."""
    return expand(
        "work/{dataset}/pools/{pool}.{key}/{group}.zarr.zip",
        dataset=DATASET,
        pool=pool,
        key=PLAN.pool_key(pool),
        group=PLAN.groups(pool),
    )


def pool_for_distillation(wildcards):
    """The networks that an entry distils from."""
    pool = PLAN.distill_pool(wildcards.entry)
    return pool_files(pool) if pool else []


def files_of_entry(wildcards):
    """The files that an entry takes its images from, which no rule makes."""
    for file in PLAN.files(wildcards.entry):
        if not Path(file).is_file():
            raise WorkflowError(
                f"{file}: there is no such file, and the entry {wildcards.entry} takes its images"
                " from it: make it with `apm import PATH --as NAME`, or set `file` of the entry"
            )
    return PLAN.files(wildcards.entry)


def pool_settings(wildcards):
    """The settings of a pool, whose key is in the path of its files."""
    key = PLAN.pool_key(wildcards.pool)
    if wildcards.key != key:
        raise WorkflowError(
            f"{wildcards.pool}.{wildcards.key}: the config in use makes {wildcards.pool}.{key}"
        )
    return PLAN.pool(wildcards.pool).text


def growing(amount):
    """A resource that grows with every attempt: a job that was stopped for want of it gets more."""
    return lambda wildcards, attempt: amount * attempt


def mem_mb(wildcards, input, attempt):
    """Memory of a job, which holds the images and the networks that it reads."""
    return (16000 + int(1.5 * input.size_mb)) * attempt


def pool_for_labels(wildcards):
    """The teachers, for an entry whose set they label."""
    pool = PLAN.label_pool(wildcards.entry)
    return pool_files(pool) if pool else []


def online_teacher(wildcards):
    """The group whose first teacher labels while an architecture is trained, where one does."""
    online = "kd" in PLAN.protocols.get(wildcards.network, [])
    return pool_files("teachers")[:1] if online else []


def shard_files(wildcards):
    """The shards of a distilled set."""
    PLAN.require_target(wildcards.dataset, wildcards.ipc)
    return expand(
        SHARD,
        dataset=wildcards.dataset,
        entry=wildcards.entry,
        ipc=PLAN.shard_ipc,
        shard=range(SETTINGS.distill.shards),
    )


def score_files(wildcards):
    """All that the results file is collected from, apart from the distilled sets."""
    PLAN.require_target(wildcards.dataset, wildcards.ipc)
    work, sets = f"work/{wildcards.dataset}", [f"ipc{wildcards.ipc}.{e}" for e in PLAN.entries]
    files = [f"{work}/evaluate/{s}/{n}.json" for s in sets for n in PLAN.protocols]
    files += [f"{work}/ceiling/{n}.json" for n in SETTINGS.evaluate.ceiling.architectures]
    if SETTINGS.nas.networks:
        files += [f"{work}/nas/{s}.json" for s in sets]
    return files


def continual_files(wildcards):
    """The figures of every entry as the memory of classes that come in steps."""
    PLAN.require_target(wildcards.dataset, wildcards.ipc)
    return expand(
        "work/{dataset}/continual/ipc{ipc}.{entry}.json",
        dataset=wildcards.dataset,
        ipc=wildcards.ipc,
        entry=PLAN.entries,
    )


def distilled_sets(wildcards):
    """The product of every entry."""
    PLAN.require_target(wildcards.dataset, wildcards.ipc)
    return expand(
        "results/{dataset}_ipc{ipc}.{entry}.zarr.zip",
        dataset=wildcards.dataset,
        ipc=wildcards.ipc,
        entry=PLAN.entries,
    )


def first_shards(wildcards):
    """The first shard of every entry, which says how its distillation went."""
    PLAN.require_target(wildcards.dataset, wildcards.ipc)
    return expand(
        SHARD,
        dataset=wildcards.dataset,
        entry=PLAN.entries,
        ipc=PLAN.shard_ipc,
        shard=0,
    )


def nas_short_file(wildcards):
    """The ranking by trainings on the full data that are as short as those on the set, if wanted."""
    count = PLAN.images_per_class(wildcards.entry)
    return f"work/{wildcards.dataset}/nas/short{count}.json" if SETTINGS.nas.short else []


def nas_reference_file(wildcards):
    """Where the reference ranking comes from."""
    reference = SETTINGS.nas.reference
    trained = f"work/{wildcards.dataset}/nas/reference.json"
    return reference.table if reference.source == "table" else trained
