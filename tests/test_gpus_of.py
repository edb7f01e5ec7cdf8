"""Which jobs ask for a GPU."""

import pytest
from gpu import gpu_here, gpus_of

from apm_core.settings.compute import ComputeSettings


@pytest.mark.parametrize(
    ("device", "local", "file", "gpus"),
    [
        ("auto", True, None, 0),
        ("auto", True, "nvidia0", 1),
        ("auto", True, "nvidiactl", 0),
        ("auto", True, "dxg", 1),
        ("auto", False, None, 1),
        ("cpu", False, "nvidia0", 0),
        ("cuda", True, None, 1),
        ("cuda:1", True, "nvidia1", 1),
    ],
)
def test_jobs_ask_for_a_gpu_where_there_may_be_one(
    monkeypatch, tmp_path, device, local, file, gpus
):
    monkeypatch.setattr("gpu.DEVICES", tmp_path)
    if file:
        (tmp_path / file).touch()
    assert gpus_of(ComputeSettings(device=device), local=local) == gpus
    assert gpu_here() == (file not in (None, "nvidiactl"))
