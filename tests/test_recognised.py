"""Images that networks classify correctly: hand-made networks of which all answers are known."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apm_core.data.prepared import PreparedData
from apm_core.errors import DataError
from apm_core.methods.shared.recognised import correct_logits, correct_shard
from apm_core.nets.flat import FlatNet
from apm_core.training.teacher_pool import TeacherPool


class Table(nn.Module):
    """Answers that do not depend on the pixels: row i of the parameters for an image of value i."""

    def __init__(self, images: int, classes: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(images, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x.flatten(1)[:, 0].long()]


def test_labels_are_means_over_the_experts_that_are_right(cpu):
    """Three experts, two images: of image 0 expert 1 is wrong, of image 1 all are."""
    answers = torch.tensor(
        [
            [[3.0, 1.0, 0.0], [5.0, 1.0, 2.0]],
            [[0.0, 9.0, 0.0], [1.0, 0.0, 6.0]],
            [[1.0, 0.0, -4.0], [3.0, 2.0, 1.0]],
        ]
    )
    images = torch.arange(2.0).view(2, 1, 1, 1)
    net, vectors = FlatNet(Table(2, 3)), answers.flatten(1)
    found = correct_logits(net, vectors, images, torch.tensor([0, 1]), cpu)
    expected = [[(3 + 1) / 2, (1 + 0) / 2, (0 - 4) / 2], [9 / 3, 3 / 3, 9 / 3]]
    torch.testing.assert_close(found, torch.tensor(expected))


@dataclass(frozen=True)
class Numbered(PreparedData):
    """Images whose first pixel is their row; the real classes."""

    def at(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        labels = torch.from_numpy(self.artifact.arrays["train_labels"][rows])
        return torch.from_numpy(rows).float().view(-1, 1, 1, 1), labels


def experts(labels: np.ndarray, right: list[set[int]]) -> tuple[FlatNet, Tensor]:
    """Networks that classify the rows in `right` correctly, and all others as the next class."""
    classes = int(labels.max()) + 1
    vectors = []
    for rows in right:
        said = [c if row in rows else (c + 1) % classes for row, c in enumerate(labels)]
        vectors.append(torch.eye(classes)[said].flatten())
    return FlatNet(Table(len(labels), classes)), torch.stack(vectors)


@pytest.fixture
def numbered(digits) -> Numbered:
    return Numbered(digits.artifact, digits.whitening)


def taken(images: Tensor) -> list[int]:
    return images.flatten().int().tolist()


def test_images_are_the_first_that_an_expert_classifies_correctly(numbered, cpu):
    labels = numbered.artifact.arrays["train_labels"]
    notes: list[str] = []
    quiet = replace(cpu, report=notes.append)
    of_class = [numbered.order(c).tolist() for c in range(10)]
    # expert 0: every third of a class; of class 4 two; expert 1: of class 4 also others
    right = {row for rows in of_class for row in rows[2::3]} - set(of_class[4])
    right |= {of_class[4][90], of_class[4][7]}
    second = {of_class[4][n] for n in (90, 3, 60)} | set(of_class[0])
    net, vectors = experts(labels, [right, second])
    for shard in range(2):
        images, classes = correct_shard(numbered, net, vectors, quiet, 2, shard)
        assert classes.tolist() == [c for c in range(10) for _ in range(2)]
        for c in range(10):
            expected = of_class[c][2::3]
            if c == 4:
                expected = [of_class[4][n] for n in (7, 90, 3, 60)]
            assert taken(images)[2 * c : 2 * c + 2] == expected[2 * shard : 2 * shard + 2]
    assert notes == []


def test_random_images_fill_up_a_class_and_are_reported(numbered, cpu):
    labels = numbered.artifact.arrays["train_labels"]
    notes: list[str] = []
    of_class = [numbered.order(c).tolist() for c in range(10)]
    everything = set(range(len(labels))) - set(of_class[4]) | {of_class[4][1]}
    net, vectors = experts(labels, [everything, everything])
    run = replace(cpu, report=notes.append)
    images, _ = correct_shard(numbered, net, vectors, run, 3, 0)
    assert taken(images)[12:15] == [of_class[4][n] for n in (1, 0, 2)]
    assert taken(images)[:3] == of_class[0][:3]
    images, _ = correct_shard(numbered, net, vectors, run, 3, 1)
    assert taken(images)[12:15] == of_class[4][3:6]
    assert notes == [
        f"start: of 30 initial images, {missed} are random ones of their class: the 2 networks"
        " classify no more of them correctly"
        for missed in (2, 3)
    ]


def test_all_shards_together_are_all_images_of_a_class(numbered, cpu):
    labels = numbered.artifact.arrays["train_labels"]
    net, vectors = experts(labels, [set(range(0, len(labels), 2)), set(range(0, len(labels), 3))])
    smallest = min(len(numbered.order(c)) for c in range(10))
    shards = [correct_shard(numbered, net, vectors, cpu, 20, k)[0] for k in range(smallest // 20)]
    rows = [row for images in shards for row in taken(images)]
    assert len(set(rows)) == len(rows) == 10 * 20 * (smallest // 20)
    with pytest.raises(DataError, match=r"training images, shard 50 needs 1020: lower ipc"):
        correct_shard(numbered, net, vectors, cpu, 20, 50)


def test_real_networks_recognise_what_is_chosen(digits, teachers: TeacherPool, cpu):
    images, classes = correct_shard(digits, teachers.net, teachers.vectors, cpu, 2, 1)
    assert torch.equal(classes, digits.shard(2, 1)[1])
    right = torch.stack([teachers.logits(k, images, cpu).argmax(1) == classes for k in range(4)])
    assert right.any(0).all()
    logits = correct_logits(teachers.net, teachers.vectors, images, classes, cpu)
    assert torch.equal(logits.argmax(1), classes)
