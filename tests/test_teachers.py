"""The pool of teachers: streams, snapshots, logits, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.utils import vector_to_parameters

from apm_core.errors import ArtifactError
from apm_core.nets.spec import Spec
from apm_core.runtime import store, streams
from apm_core.runtime.resume import Resume
from apm_core.runtime.run import Run
from apm_core.settings.stages import Demands
from apm_core.stages.prepare import prepare
from apm_core.stages.teachers import train_group
from apm_core.training.recipe import teacher_recipe
from apm_core.training.teacher_pool import TeacherPool
from apm_core.training.trainer import Trainer


def predict(pool: TeacherPool, index: int, images: torch.Tensor) -> torch.Tensor:
    """Logits of one teacher from a network built anew."""
    net = pool.spec.build().eval()
    vector_to_parameters(pool.vectors[index], net.parameters())
    with torch.no_grad():
        return net(images)


def test_the_pool_is_the_groups_in_order(teachers, teacher_files):
    parts = [store.read(path, "teachers").arrays["parameters"] for path in teacher_files]
    np.testing.assert_array_equal(teachers.vectors, np.concatenate(parts))
    assert len(teachers) == 4
    assert len(torch.unique(teachers.vectors, dim=0)) == 4


def test_a_teacher_does_not_depend_on_those_beside_it(
    teachers, teacher_settings, digits, cpu, tmp_path
):
    for member in (3, 0):
        torch.manual_seed(member)
        alone = train_group(tmp_path / "a", teacher_settings, [member], digits, Run(cpu))
        np.testing.assert_array_equal(alone.arrays["parameters"][0], teachers.vectors[member])
        assert alone.info["members"] == [member]


def test_a_teacher_is_its_stream_its_recipe_and_the_training_split(
    teachers, teacher_settings, digits, cpu
):
    spec = Spec("convnet", digits.shape, 6, 1)
    recipe = teacher_recipe(teacher_settings.training)
    assert (recipe.passes, recipe.drop, recipe.loss) == (2, 1, "ce")
    train = digits.examples("train", cpu)
    one = Trainer(spec.network(cpu.device), recipe, cpu, train, networks=1)
    one.fit(spec.fresh(0, "teacher", 2, "weights"), 0, "teacher", 2)
    assert torch.equal(one.net.vector, teachers.vectors[2])


def test_another_seed_trains_other_teachers(teachers, teacher_settings, digits, cpu, tmp_path):
    settings = teacher_settings.changed({"seed": 1})
    other = train_group(tmp_path / "a", settings, [0], digits, Run(cpu))
    assert not np.array_equal(other.arrays["parameters"][0], teachers.vectors[0])


def test_snapshots_run_from_the_initial_to_the_final_parameters(teachers, teacher_settings):
    for number, artifact in enumerate(teachers.artifacts):
        kept = artifact.arrays["snapshots"]
        assert kept.shape == (2, 1 + teacher_settings.training.epochs, teachers.vectors.shape[1])
        for position in range(2):
            start = teachers.spec.fresh(0, "teacher", 2 * number + position, "weights")
            np.testing.assert_array_equal(kept[position, 0], start)
        np.testing.assert_array_equal(kept[:, -1], artifact.arrays["parameters"])
        assert len(np.unique(kept.reshape(6, -1), axis=0)) == 6


def test_snapshots_of_the_first_teachers_are_read_alone(teachers):
    first = teachers.after(1, 2)
    assert [list(one.arrays._read) for one in teachers.artifacts][1] == ["parameters"]
    assert len(first) == 2 and all(map(torch.equal, first, teachers.after(1)))
    assert torch.equal(teachers.after(None, 3), teachers.vectors[:3])


def test_snapshots_are_left_out_unless_asked_for(teachers, teacher_settings, digits, cpu, tmp_path):
    settings = teacher_settings.changed({"training": {"snapshots": False}})
    found = train_group(tmp_path / "a", settings, [1], digits, Run(cpu))
    assert set(found.arrays) == {"parameters"}
    np.testing.assert_array_equal(found.arrays["parameters"][0], teachers.vectors[1])


def test_snapshots_take_half_the_space_as_float16(
    teachers, teacher_settings, digits, cpu, tmp_path
):
    notes: list[str] = []
    settings = teacher_settings.changed({"training": {"snapshot_type": "float16"}})
    run = Run(replace(cpu, report=notes.append))
    found = train_group(tmp_path / "a", settings, [1], digits, run)
    kept, wide = found.arrays["snapshots"], teachers.artifacts[0].arrays["snapshots"][1]
    np.testing.assert_array_equal(kept[0], wide.astype(np.float16))
    np.testing.assert_array_equal(found.arrays["parameters"][0], teachers.vectors[1])
    assert notes == [f"snapshots of 1 networks will take {kept.nbytes / 1e9:.3g} GB"]
    assert kept.nbytes == wide.nbytes // 2
    pool = TeacherPool.open([tmp_path / "a"], digits, cpu)
    assert pool.trajectories[0].dtype == torch.float16 and pool.vectors.dtype == torch.float32


def test_flat_experts_are_teachers_with_a_radius(teachers, teacher_settings, digits, cpu, tmp_path):
    settings = teacher_settings.changed({"training": {"rho": 0.1, "alpha": 0.3}})
    recipe = teacher_recipe(settings.training)
    assert (recipe.rho, recipe.alpha) == (0.1, 0.3)
    found = train_group(tmp_path / "a", settings, [1], digits, Run(cpu)).arrays["snapshots"][0]
    plain = teachers.artifacts[0].arrays["snapshots"][1]
    np.testing.assert_array_equal(found[0], plain[0])
    assert not np.allclose(found[1], plain[1], rtol=1e-3)


def test_test_accuracies_are_recorded(teachers, digits, cpu):
    test = digits.examples("test", cpu)
    for index in range(4):
        hits = predict(teachers, index, test.images).argmax(1) == test.targets
        recorded = teachers.artifacts[index // 2].info["test_accuracy"][index % 2]
        assert recorded == pytest.approx(100 * float(hits.double().mean()))
        assert recorded > 20


def test_logits_are_those_of_one_teacher_or_the_mean_of_all(teachers, digits, cpu):
    images = digits.shard(2, 0)[0]
    each = torch.stack([predict(teachers, index, images) for index in range(4)])
    for index in (2, 0, 3, 1):
        torch.testing.assert_close(teachers.logits(index, images, cpu), each[index])
    torch.testing.assert_close(teachers.logits(None, images, cpu), each.mean(0))


def test_a_loaded_teacher_takes_no_gradient_and_does_not_change_the_pool(teachers):
    before = teachers.vectors.clone()
    net = teachers.load(1)
    assert not any(p.requires_grad for p in net.module.parameters()) and not net.module.training
    net.vector.zero_()
    assert torch.equal(teachers.vectors, before)


def test_teachers_of_other_data_are_refused(teacher_files, digits_settings, cpu, tmp_path):
    other = prepare(tmp_path / "a", digits_settings.changed({"seed": 1}), demands=Demands())
    message = f"{teacher_files[0]}: this teachers was made from another data than {tmp_path}/a"
    with pytest.raises(ArtifactError, match=message):
        TeacherPool.open(teacher_files, other, cpu)


def test_groups_of_different_architectures_are_refused(
    teacher_files, teacher_settings, digits, cpu, tmp_path
):
    path = tmp_path / "wide"
    wide = teacher_settings.changed({"network": {"width": 7}})
    train_group(path, wide, [2], digits, Run(cpu))
    with pytest.raises(ArtifactError, match=rf"{path}: holds Spec\(.*width=7.*width=6.*delete the"):
        TeacherPool.open([teacher_files[0], path], digits, cpu)


def test_a_group_that_is_killed_and_resumed_has_the_same_bits(
    teachers, teacher_settings, digits, cpu, tmp_path
):
    shown = []

    def kill(done, total, figures):
        shown.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    resume, target = Resume(tmp_path / "resume", "teachers", every=0), tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        train_group(target, teacher_settings, [2, 3], digits, Run(cpu, resume, kill))
    assert shown == [(1, 4), (2, 4), (3, 4)] and not target.exists()

    shown.clear()
    found = train_group(
        target,
        teacher_settings,
        [2, 3],
        digits,
        Run(cpu, resume, lambda *call: shown.append(call[:2])),
    )
    assert shown == [(3, 4), (4, 4)]
    assert found.content == teachers.artifacts[1].content
    assert found.info["test_accuracy"] == teachers.artifacts[1].info["test_accuracy"]


def test_teachers_side_by_side_have_the_bits_of_one_after_the_other(
    teachers, teacher_settings, digits, cpu, tmp_path
):
    shown = []
    run = Run(replace(cpu, side_by_side=3), progress=lambda *call: shown.append(call[:2]))
    found = train_group(tmp_path / "a", teacher_settings, range(4), digits, run)
    np.testing.assert_array_equal(found.arrays["parameters"], teachers.vectors)
    parts = [artifact.arrays["snapshots"] for artifact in teachers.artifacts]
    np.testing.assert_array_equal(found.arrays["snapshots"], np.concatenate(parts))
    assert shown == [(3, 8), (6, 8), (7, 8), (8, 8)]


def test_names_of_the_streams_are_kept_apart():
    paths = [(0, "teacher", 1, "weights"), (0, "teacher", 1, 0), (0, "teacher", 1, "dropout")]
    assert len({streams.derive(*path) for path in paths}) == 3
