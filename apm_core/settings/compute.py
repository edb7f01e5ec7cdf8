"""How to compute: the precision changes results, the rest at most their last digits."""

from typing import Annotated, Literal

from pydantic import Field

from apm_core.settings.section import Above, AtLeast, Count, Section, setting

Precision = Literal["auto", "float32", "bf16"]


class ComputeSettings(Section):
    """Device, arithmetic, memory and threads of every job."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = setting(
        "auto", "auto, cpu, cuda or cuda:N"
    )
    precision: Precision = setting("auto", "auto: bf16 where the hardware multiplies in it")
    compile: Literal["auto", "on", "off"] = setting(
        "auto",
        "auto: when a job is long enough to earn it back (quote on and off: YAML reads them as"
        " true and false)",
    )
    kernels: bool | None = setting(
        None,
        "norm, ReLU and pooling of a ConvNet in one kernel of our own, in C++ on a CPU, in Triton"
        " on a GPU; null: on a CPU",
    )
    side_by_side: Count = setting(
        1, "on a GPU: trainings of one job at once (teachers, evaluation, NAS), each in own memory"
    )
    deterministic: bool = setting(
        False,
        "on a GPU: the same bits in every run and after a resume, slower; on a CPU always so",
    )
    segment: Count | None = setting(
        None, "images through one network at a time in the image update; null: all at once"
    )
    memory_gb: Above | None = setting(
        None, "GB of a distillation job on a CPU; picks the segment; null: no limit"
    )
    gpu_memory_gb: Above | None = setting(None, "the same on a GPU")
    threads: Count = setting(8, "CPU threads per job, at most what --cores allows")
    resume_interval: AtLeast = setting(
        60, "seconds of work that a killed job may lose; more where saving would take over 1 %"
    )
