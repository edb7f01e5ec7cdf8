"""The jobs of a run."""

from apm_core.settings.plan import Plan
from apm_core.settings.training import Pool


def jobs(plan: Plan) -> dict[str, int]:
    """The number of jobs of each stage."""
    settings, entries = plan.settings, len(plan.entries)
    ranked = settings.nas.networks > 0
    return {
        "prepare": 1,
        "whitening": 1,
        "teachers": sum(pool.groups for pool in pools(plan).values()),
        "distill": entries * settings.distill.shards,
        "merge": entries,
        "evaluate": entries * len(plan.protocols),
        "ceiling": len(settings.evaluate.ceiling.architectures),
        "nas_reference": int(ranked and settings.nas.reference.source == "train"),
        "nas_proxy": entries * ranked,
        "nas_short": len(short_sizes(plan)) * ranked,
        "nas": entries * ranked,
        "collect": 1,
    }


def short_sizes(plan: Plan) -> set[int]:
    """Images per class of the sets beside which the full data rank networks in short trainings."""
    return {plan.images_per_class(entry) for entry in plan.entries if plan.settings.nas.short}


def pools(plan: Plan) -> dict[str, Pool]:
    """The pools that the entries distil from, or that label their sets; of teachers that label
    online alone, the first group.
    """
    used = {find(entry) for entry in plan.entries for find in (plan.distill_pool, plan.label_pool)}
    found = {name: pool for name, pool in plan.settings.pools.items() if name in used}
    if "teachers" not in found and any("kd" in told for told in plan.protocols.values()):
        teachers = plan.settings.teachers
        found["teachers"] = teachers.changed({"n": teachers.per_job})
    return found
