"""The training loop against a plain one; losses, and what a trained network says."""

import copy
import gc
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apm_core import nets
from apm_core.data.examples import Examples
from apm_core.errors import DivergenceError
from apm_core.nets.architectures.convnet import ConvNet
from apm_core.nets.base import Shape
from apm_core.nets.flat import FlatNet
from apm_core.nets.spec import Spec
from apm_core.runtime import device, streams
from apm_core.runtime.device import Compute
from apm_core.runtime.resume import Part, Resume, each
from apm_core.settings.names import names_in
from apm_core.training import augment
from apm_core.training.cutmix import cutmix
from apm_core.training.inference import accuracy, forward_flops, labeller, logits, measures
from apm_core.training.losses import loss_of
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Labeller, Rows, Trainer, Training, fit_together

SHAPE = Shape(channels=1, resolution=8, classes=4)
COUNT = 10  # images; batches of 4, 4 and 2
RECIPE = Recipe(passes=5, lr=0.1, batch=4, drop=3, loss="l1")
PLAIN_LOSSES = {
    "ce": lambda z, y: -z.log_softmax(1)[range(len(y)), y].mean(),
    "l1": lambda z, y: (z - y).abs().sum() / y.numel(),
    "soft_ce": lambda z, y: -(y.softmax(1) * z.log_softmax(1)).sum(1).mean(),
    "half_mse": lambda z, y: ((z - y) ** 2).sum() / (2 * len(y)),
}


def module(seed: int = 0) -> nn.Module:
    with streams.seeded("net", seed):
        return ConvNet(SHAPE, width=4, depth=1)


def examples(loss: str = "l1", dtype: torch.dtype = torch.float32) -> Examples:
    random = torch.Generator().manual_seed(3)
    images = torch.randn(COUNT, 1, 8, 8, generator=random, dtype=torch.float64).to(dtype)
    classes = torch.arange(COUNT) % 4
    soft = torch.randn(COUNT, 4, generator=random, dtype=torch.float64).to(dtype)
    return Examples(images, classes if loss == "ce" else soft)


def trainer(
    cpu,
    recipe: Recipe,
    net: nn.Module | None = None,
    given: Examples | None = None,
    label: Labeller | None = None,
) -> Trainer:
    flat = FlatNet(net or module())
    return Trainer(flat, recipe, cpu, given or examples(), networks=1, label=label)


def complete_gradients(net: nn.Module) -> None:
    """Zeros for biases in front of a norm, which no loss depends on: they only decay."""
    for parameter in net.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def plain_training(net: nn.Module, recipe: Recipe, given: Examples, *stream) -> nn.Module:
    """What a reader of the paper would write: parameters one by one, no flat vector."""
    optimizer = None
    for index in range(recipe.passes):
        dropped = recipe.drop is not None and index >= recipe.drop
        if optimizer is None or (recipe.drop_momentum and index == recipe.drop):
            optimizer = torch.optim.SGD(
                net.parameters(),
                lr=recipe.lr,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
                nesterov=recipe.nesterov,
                foreach=False,
            )
        cosine = recipe.lr / 2 * (1 + math.cos(math.pi * index / recipe.passes))
        rate = cosine if recipe.schedule == "cosine" else recipe.lr / (10 if dropped else 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        random = streams.generator(*stream, index)
        order = torch.randperm(COUNT, generator=random)
        for start in range(0, COUNT, recipe.batch):
            chosen = order[start : start + recipe.batch]
            drawn = augment.draw(recipe.augment, len(chosen), random)
            predicted = net(augment.augment(given.images[chosen], drawn))
            optimizer.zero_grad()
            PLAIN_LOSSES[recipe.loss](predicted, given.targets[chosen]).backward()
            complete_gradients(net)
            optimizer.step()
    return net


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, drop_momentum=True),
        replace(RECIPE, loss="ce", schedule="cosine", nesterov=True, weight_decay=0.01),
        replace(RECIPE, loss="half_mse", augment="none", batch=COUNT, momentum=0.0),
        replace(RECIPE, loss="soft_ce", augment="crop_flip", batch=3, drop=None),
    ],
    ids=["step", "momentum forgotten", "cosine", "whole batch", "no drop"],
)
def test_fit_equals_a_plain_loop(cpu, recipe):
    given = examples(recipe.loss, torch.float64)
    expected = plain_training(module().double(), recipe, given, 4, "student")
    one = trainer(cpu, recipe, module(seed=1).double(), given)
    start = nn.utils.parameters_to_vector(module().parameters()).detach().double()
    one.fit(start, 4, "student")
    found = dict(one.net.module.named_parameters())
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(found[name], parameter, rtol=1e-10, atol=1e-12)


def test_momentum_is_forgotten_at_the_drop_only_where_asked(cpu):
    def after(recipe: Recipe) -> Tensor:
        one = trainer(cpu, recipe)
        one.fit(one.net.snapshot(), "drop")
        return one.net.snapshot()

    forgotten = replace(RECIPE, drop_momentum=True)
    assert not torch.equal(after(RECIPE), after(forgotten))
    before_drop = replace(RECIPE, passes=3), replace(forgotten, passes=3)
    assert torch.equal(*map(after, before_drop))
    no_drop = [replace(one, schedule="cosine") for one in (RECIPE, forgotten)]
    assert torch.equal(*map(after, no_drop))


ADAM = Recipe(
    passes=9, lr=3e-3, batch=4, loss="half_mse", optimizer="adam", schedule="cosine", warmup=3
)


@pytest.mark.parametrize(
    "recipe",
    [
        replace(ADAM, floor=0.01, weight_decay=0.0, augment="none"),
        replace(ADAM, momentum=0.8, weight_decay=0.1, augment="crop_flip"),
        replace(ADAM, schedule="step", drop=4),
        replace(ADAM, schedule="step", drop=4, drop_momentum=True),
    ],
    ids=["warm-up and cosine", "beta and decay", "step", "forgotten"],
)
def test_adam_equals_that_of_torch(cpu, recipe):
    given, net = examples("half_mse", torch.float64), module().double()
    optimizer = None
    for index in range(recipe.passes):
        if optimizer is None or (recipe.drop_momentum and index == recipe.drop):
            betas, decay = (recipe.momentum, 0.999), recipe.weight_decay
            optimizer = torch.optim.Adam(net.parameters(), betas=betas, weight_decay=decay)
        optimizer.param_groups[0]["lr"] = recipe.rate(index)
        random = streams.generator("adam", index)
        for chosen in torch.randperm(COUNT, generator=random).split(recipe.batch):
            drawn = augment.draw(recipe.augment, len(chosen), random)
            predicted = net(augment.augment(given.images[chosen], drawn))
            optimizer.zero_grad()
            PLAIN_LOSSES["half_mse"](predicted, given.targets[chosen]).backward()
            complete_gradients(net)
            optimizer.step()
    one = trainer(cpu, recipe, module(seed=1).double(), given)
    start = nn.utils.parameters_to_vector(module().parameters()).detach().double()
    for _ in range(2):  # the second network finds no trace of the first
        one.fit(start, "adam")
        expected = nn.utils.parameters_to_vector(net.parameters()).detach()
        torch.testing.assert_close(one.net.snapshot(), expected, rtol=1e-9, atol=1e-9)


ONLINE = Recipe(
    passes=4,
    lr=3e-3,
    batch=4,
    weight_decay=0.3,
    loss="kl",
    augment="flip_crop",
    optimizer="adamw",
    schedule="half_cosine",
    cutmix=True,
    temperature=20.0,
)


def test_training_under_online_labels_equals_that_of_torch(cpu):
    """AdamW by groups of parameters, CutMix by slices, labels of the mixed images."""
    given, net, teacher = examples("kl", torch.float64), module().double(), module(seed=5).double()
    groups = {
        decay: [p for p in net.parameters() if (p.dim() >= 2) == bool(decay)] for decay in (0.3, 0)
    }
    assert all(groups.values())
    optimizer = torch.optim.AdamW(
        [{"params": of, "weight_decay": decay} for decay, of in groups.items()]
    )
    for index in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 + math.cos(math.pi * index / 8)) / 2
        random = streams.generator("online", index)
        batches = torch.randperm(COUNT, generator=random).split(4)
        for of_a_size in (batches[:2], batches[2:]):
            drawn = [augment.draw("flip_crop", len(chosen), random) for chosen in of_a_size]
            numbers = torch.rand(len(of_a_size), 3, generator=random).tolist()
            for chosen, one, (area, down, right) in zip(of_a_size, drawn, numbers, strict=True):
                images = augment.augment(given.images[chosen], one)
                half = int(8 * area**0.5) // 2
                (top, bottom), (left, end) = (
                    (max(0, int(8 * at) - half), min(8, int(8 * at) + half)) for at in (down, right)
                )
                mixed = images.clone()
                for number in range(len(images)):
                    other = images[number - 1, :, top:bottom, left:end]
                    mixed[number, :, top:bottom, left:end] = other
                optimizer.zero_grad()
                wanted = teacher(mixed).detach() / 20
                F.kl_div(
                    (net(mixed) / 20).log_softmax(1), wanted.softmax(1), reduction="batchmean"
                ).backward()
                complete_gradients(net)
                optimizer.step()
    label = labeller(FlatNet(copy.deepcopy(teacher)), cpu)
    one = trainer(cpu, ONLINE, module(seed=1).double(), given, label)
    start = nn.utils.parameters_to_vector(module().parameters()).detach().double()
    for _ in range(2):  # the second network finds no trace of the first
        one.fit(start, "online")
        expected = nn.utils.parameters_to_vector(net.parameters()).detach()
        torch.testing.assert_close(one.net.snapshot(), expected, rtol=1e-9, atol=1e-9)
    assert float((expected - start).abs().max()) > 1e-3


def test_who_labels_a_batch_sees_what_the_network_sees(cpu):
    seen = {"network": [], "labeller": []}

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module()

        def forward(self, x: Tensor) -> Tensor:
            seen["network"].append(x.clone())
            return self.inner(x)

    def label(images: Tensor) -> Tensor:
        seen["labeller"].append(images.clone())
        return torch.zeros(len(images), 4)

    one = trainer(cpu, ONLINE, Watched(), label=label)
    seen["network"].clear()
    one.fit(one.net.snapshot(), 0)
    assert [len(images) for images in seen["labeller"]] == [4, 4, 2] * 4
    assert all(map(torch.equal, seen["network"], seen["labeller"]))
    given = examples().images
    whole = [any((image == one).all() for one in given) for image in torch.cat(seen["network"])]
    assert not all(whole)


def test_the_network_that_labels_stays_as_it_is(cpu):
    net = nn.Sequential(nn.BatchNorm2d(1), module())
    teacher = FlatNet(copy.deepcopy(net).train())
    before = copy.deepcopy(teacher.module.state_dict())
    label = labeller(teacher, cpu)
    one = trainer(cpu, ONLINE, net, label=label)
    one.fit(one.net.snapshot(), 0)
    after = teacher.module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not label(examples().images).requires_grad
    rounded = label(examples().images) - labeller(teacher, replace(cpu, precision="bf16"))(
        examples().images
    )
    assert rounded.dtype == torch.float32 and 0 < float(rounded.abs().max()) < 0.1


def test_without_cutmix_the_random_numbers_are_those_of_before():
    order = torch.arange(6)
    for mixed in (False, True):
        rows = Rows(3, 2, "flip_crop", torch.device("cpu"), mixed=mixed)
        random = streams.generator("rows")
        rows.fill(order, random)
        plain = streams.generator("rows")
        for _ in range(2):
            assert torch.equal(rows.next()[2], augment.draw("flip_crop", 3, plain).uniform)
        if mixed:
            assert torch.equal(rows.mix, torch.rand(2, 3, generator=plain))
        assert torch.equal(random.get_state(), plain.get_state())


def test_the_square_of_cutmix_has_a_uniform_share_of_the_area():
    """Before the border cuts it off, and but for whole pixels; every place is its centre as often
    as another.
    """
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 64, 64)
    random = torch.Generator().manual_seed(0)
    share, middle = [], []
    for u in torch.rand(4000, 3, generator=random):
        mixed = cutmix(images, u)
        assert torch.equal(mixed[0] + mixed[1], torch.ones(1, 64, 64))  # one square for both
        middle.append(float(cutmix(images, torch.tensor([u[0], 0.5, 0.5]))[0].mean()))
        share.append(float(mixed[0].mean()))
    middle, share = np.sort(middle), np.array(share)
    assert np.abs(middle - (np.arange(4000) + 0.5) / 4000).max() < 0.07  # a side loses 2 pixels
    # of a side s the border leaves s - s^2 / 4 on average, so E = integral of (s - s^2/4)^2 2s ds
    assert abs(share.mean() - (1 / 2 - 1 / 5 + 1 / 48)) < 0.03
    assert torch.equal(cutmix(images, torch.tensor([0.0, 0.3, 0.9])), images)
    one = torch.rand(1, 3, 8, 8)
    assert torch.equal(cutmix(one, torch.tensor([0.5, 0.5, 0.5])), one)  # its own neighbour


def test_the_divergence_equals_that_of_torch():
    random = torch.Generator().manual_seed(0)
    z, y = torch.randn(2, 7, 5, generator=random, dtype=torch.float64)
    expected = F.kl_div(z.log_softmax(1), y.softmax(1), reduction="batchmean")
    found = loss_of("kl")(z, y)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert float(loss_of("kl")(y, y)) == pytest.approx(0, abs=1e-15) and found > 0


def test_snapshots_are_those_of_shorter_runs(cpu):
    recipe = replace(RECIPE, drop=None)
    one = trainer(cpu, recipe)
    start = one.net.snapshot()
    kept = one.fit(start, "keep", keep={0, 2, 4})
    shorter = []
    for passes in (1, 3, 5):
        other = trainer(cpu, replace(recipe, passes=passes))
        other.fit(start, "keep")
        shorter.append(other.net.snapshot())
    assert len(kept) == 3 and all(map(torch.equal, kept, shorter))
    assert len(torch.unique(torch.stack([start, *kept]), dim=0)) == 4


def test_snapshots_outlive_later_training(cpu):
    one = trainer(cpu, RECIPE)
    start = one.net.snapshot()
    kept = one.fit(start, "a", keep=range(5))
    copies = [vector.clone() for vector in (start, *kept)]
    one.fit(start, "b")
    assert all(map(torch.equal, (start, *kept), copies))


def test_fit_depends_on_its_stream_alone(cpu):
    one = trainer(cpu, RECIPE)
    start = one.net.snapshot()

    def fit(number: int) -> Tensor:
        return one.fit(start, 0, number, keep=[4])[0]

    first, second = fit(1), fit(2)
    torch.manual_seed(99)
    assert torch.equal(fit(2), second) and torch.equal(fit(1), first)
    assert not torch.equal(first, second)


def test_fit_leaves_the_global_generator_alone(cpu):
    one = trainer(cpu, RECIPE)
    before = torch.get_rng_state()
    one.fit(one.net.snapshot(), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_networks_with_dropout_are_reproducible(cpu):
    spec = Spec("vit", SHAPE)
    one = trainer(cpu, replace(RECIPE, passes=2, augment="none"), spec.build())
    assert any(isinstance(m, nn.Dropout) and m.p > 0 for m in one.net.module.modules())
    start = spec.fresh("vit")
    first = one.fit(start, "a", keep=[1])[0]
    torch.manual_seed(99)
    assert torch.equal(one.fit(start, "a", keep=[1])[0], first)
    for layer in one.net.module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    assert not torch.equal(one.fit(start, "a", keep=[1])[0], first)


def test_every_image_is_seen_once_a_pass_and_the_short_batch_too(cpu):
    class Recorder:
        seen: tuple[Tensor, ...] = ()

        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, index: Tensor) -> Tensor:
            self.seen += (index,)
            return examples().images[index]

    recorder = Recorder()
    given = Examples(recorder, examples().targets)
    one = trainer(cpu, replace(RECIPE, passes=2), given=given)
    recorder.seen = ()
    one.fit(one.net.snapshot(), 0)
    assert [len(index) for index in recorder.seen] == [4, 4, 2] * 2
    passes = torch.cat(recorder.seen[:3]), torch.cat(recorder.seen[3:])
    assert all(sorted(order.tolist()) == list(range(COUNT)) for order in passes)
    assert not torch.equal(*passes)


class KilledError(Exception):
    pass


class TriedGraphs:
    """Stands for `Graphs` where there is no GPU: tries a step as capturing does, puts back what was
    named, and does the step."""

    def __init__(self) -> None:
        self.tried = set()

    def play(self, key, step, state) -> None:
        if key not in self.tried:
            self.tried.add(key)
            before, noise = [tensor.clone() for tensor in state], torch.get_rng_state()
            for _ in range(4):
                step()
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
            torch.set_rng_state(noise)
        step()


UNFINISHED = {
    "sgd": (replace(RECIPE, drop_momentum=True), module),
    "flat": (replace(RECIPE, rho=0.05, alpha=0.3), module),
    "adam": (replace(RECIPE, optimizer="adam", schedule="cosine", warmup=2), module),
    "online": (replace(ONLINE, passes=5), module),
    "dropout": (replace(RECIPE, loss="l1"), lambda: nets.build("vit", SHAPE)),
    "statistics": (RECIPE, lambda: nn.Sequential(nn.BatchNorm2d(1), module())),
}


def teacher_of(recipe: Recipe, compute: Compute) -> Labeller | None:
    """Who labels the batches of a recipe."""
    return labeller(FlatNet(module(seed=5)), compute) if recipe.cutmix else None


@pytest.mark.parametrize("passes", [1, 3, 4])
@pytest.mark.parametrize("name", UNFINISHED)
def test_a_training_that_was_killed_between_two_passes_ends_with_the_same_bits(
    cpu, tmp_path, name, passes
):
    recipe, build = UNFINISHED[name]
    with streams.seeded("net"):
        net = build()
    whole = trainer(cpu, recipe, copy.deepcopy(net), label=teacher_of(recipe, cpu))
    start = whole.net.snapshot()
    kept = whole.fit(start, "a", keep=(0, 2, 4))

    def kill(done: int, total: int, figures: dict) -> None:
        if done == passes + 1:
            raise KilledError

    calls = []

    def work(done: list, item: int, part: Part) -> list[Tensor]:
        one = trainer(cpu, recipe, copy.deepcopy(net), label=teacher_of(recipe, cpu))
        torch.manual_seed(len(done))  # what ran before in the process does not matter
        calls.append(one)
        show = kill if len(calls) == 1 else lambda *_: None
        return one.fit(start, "a", keep=(0, 2, 4), progress=show, part=part)

    with pytest.raises(KilledError):
        each([0], work, Resume(tmp_path, name, every=0))
    assert Resume(tmp_path, name).load()["part"]["done"] == passes
    [found] = each([0], work, Resume(tmp_path, name, every=0))
    assert torch.equal(torch.stack(found), torch.stack(kept))
    assert torch.equal(calls[1].net.vector, whole.net.vector)
    for buffer, expected in zip(
        calls[1].net.module.buffers(), whole.net.module.buffers(), strict=True
    ):
        assert torch.equal(buffer, expected)


@pytest.mark.parametrize("killed_after", [None, 3])
@pytest.mark.parametrize("name", UNFINISHED)
def test_trainings_together_have_the_bits_of_each_alone(cpu, tmp_path, name, killed_after):
    recipe, build = UNFINISHED[name]
    label, nets = teacher_of(recipe, cpu), []
    for number in range(3):
        with streams.seeded("net", number):
            nets.append(build())
    alone = [trainer(cpu, recipe, copy.deepcopy(net), label=label) for net in nets]
    kept = [one.fit(one.net.snapshot(), "a", n, keep=(0, 4)) for n, one in enumerate(alone)]
    means = []

    def kill(done: int, total: int, figures: dict) -> None:
        means.append(figures["loss"])
        if done == killed_after:
            raise KilledError

    def work(done: list, item: int, part: Part) -> list[list[Tensor]]:
        nonlocal together
        together = [trainer(cpu, recipe, copy.deepcopy(net), label=label) for net in nets]
        starts = [Training(one.net.snapshot(), ("a", n)) for n, one in enumerate(together)]
        torch.manual_seed(1)
        return fit_together(together, starts, keep=(0, 4), progress=kill, part=part)

    together = []
    if killed_after:
        with pytest.raises(KilledError):
            each([0], work, Resume(tmp_path, name, every=0))
        killed_after = None
    [found] = each([0], work, Resume(tmp_path, name, every=0))
    assert all(
        torch.equal(torch.stack(f), torch.stack(k)) for f, k in zip(found, kept, strict=True)
    )
    for one, expected in zip(together, alone, strict=True):
        assert torch.equal(one.net.vector, expected.net.vector)
        assert not one.net.module.training
    last = []
    for number, net in enumerate(nets):
        one = trainer(cpu, recipe, copy.deepcopy(net), label=label)
        one.fit(one.net.snapshot(), "a", number, progress=lambda *seen: last.append(seen))
    final = [figures["loss"] for done, total, figures in last if done == total]
    assert means[-1] == pytest.approx(sum(final) / 3, rel=1e-6)


def test_divergence_of_one_of_several_ends_them(cpu):
    good, bad = trainer(cpu, RECIPE), trainer(cpu, RECIPE)
    starts = [Training(one.net.snapshot(), (n,)) for n, one in enumerate((good, bad))]
    bad.examples.images.fill_(torch.nan)
    with pytest.raises(DivergenceError, match="loss is nan in pass 0 of 5 at"):
        fit_together([good, bad], starts)


@pytest.mark.parametrize("name", UNFINISHED)
def test_trial_runs_of_a_captured_step_leave_no_trace(cpu, monkeypatch, name):
    # all that a step changes must be among what is put back; one graph serves all augmentations
    monkeypatch.setattr("apm_core.training.trainer.Graphs", TriedGraphs)
    recipe, build = UNFINISHED[name]
    with streams.seeded("net"):
        net = build()
    results = []
    for graphs in (False, True):
        label = teacher_of(recipe, cpu)
        one = trainer(replace(cpu, graphs=graphs), recipe, copy.deepcopy(net), label=label)
        start = one.net.snapshot()
        for network in range(2):
            one.fit(start, network)
        results.append(torch.cat([one.net.vector, *map(torch.flatten, one.net.module.buffers())]))
    assert one._graphs.tried == {4, 2}  # batch sizes
    assert torch.equal(*results)


@pytest.mark.skipif(not device._compiler(), reason="no C++ compiler")
@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        (replace(RECIPE, nesterov=True), ["augmentation", "network", "update"]),
        (ONLINE, ["augmentation", "labels", "network"]),
    ],
    ids=["sgd", "online"],
)
def test_what_is_compiled_of_captured_steps_equals_what_is_plain(
    cpu, monkeypatch, ran, recipe, parts
):
    monkeypatch.setattr("apm_core.training.trainer.Graphs", TriedGraphs)
    recipe, results = replace(recipe, passes=2), []
    captured = replace(cpu, compile="on", graphs=True, report=pytest.fail)
    for compute in (cpu, captured):
        one = trainer(compute, recipe, label=teacher_of(recipe, compute))
        start = one.net.snapshot()
        one.fit(start, 0)
        results.append(one.net.vector - start)
    # of each step, with the four trial runs of each of the two batch sizes
    graphs = {"network": ["forward", "backward"]}
    step = [graph for part in parts for graph in graphs.get(part, ["forward"])]
    assert ran == step * (2 * 3 + 2 * 4)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5 * float(results[0].abs().max()))


@pytest.mark.parametrize("graphs", [False, True])
def test_a_trainer_goes_with_the_last_that_refers_to_it(cpu, monkeypatch, graphs):
    # else the memory of captured steps would wait for the garbage collector
    monkeypatch.setattr("apm_core.training.trainer.Graphs", TriedGraphs)
    one = trainer(replace(cpu, graphs=graphs), RECIPE)
    one.fit(one.net.snapshot(), 0)
    known = weakref.ref(one)
    gc.disable()
    try:
        del one
        assert known() is None
    finally:
        gc.enable()


def test_progress_counts_passes_and_shows_the_loss(cpu):
    shown = []
    one = trainer(cpu, replace(RECIPE, batch=COUNT, augment="none"))
    before = one.net.snapshot()
    one.fit(before, 0, progress=lambda *call: shown.append(call))
    assert [(done, total) for done, total, _ in shown] == [(index, 5) for index in range(1, 6)]
    one.net.load(before)
    loss = F.l1_loss(one.net.module(examples().images), examples().targets)
    assert shown[0][2]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_divergence_names_pass_loss_and_rate(cpu):
    one = trainer(cpu, replace(RECIPE, lr=1e30, drop=1, batch=COUNT))
    message = r"l1 loss is (nan|inf) in pass 4 of 5 at learning rate 1e\+29: lower the learning"
    with pytest.raises(DivergenceError, match=message):
        one.fit(one.net.snapshot(), 0)


def test_divergence_is_noticed_in_its_pass_when_progress_is_shown(cpu):
    bad = Examples(examples().images, torch.full((COUNT, 4), math.inf))
    one = trainer(cpu, RECIPE, given=bad)
    with pytest.raises(DivergenceError, match=r"is inf in pass 0 of 5 at learning rate 0\.1"):
        one.fit(one.net.snapshot(), 0, progress=lambda *_: None)


@pytest.mark.parametrize("loss", names_in("training.losses"))
def test_losses_equal_their_closed_forms(loss):
    random = torch.Generator().manual_seed(1)
    predicted, soft = torch.randn(2, 6, 4, generator=random, dtype=torch.float64)
    targets = soft.argmax(1) if loss == "ce" else soft
    z, y = predicted.numpy(), soft.numpy()
    log_softmax = z - np.log(np.exp(z).sum(1, keepdims=True))
    softmax = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    expected = {
        "ce": -log_softmax[range(6), y.argmax(1)].mean(),
        "kl": (softmax * (np.log(softmax) - log_softmax)).sum() / 6,
        "soft_ce": -(softmax * log_softmax).sum() / 6,
        "l1": np.abs(z - y).sum() / 24,
        "half_mse": ((z - y) ** 2).sum() / 12,
    }
    assert float(loss_of(loss)(predicted, targets)) == pytest.approx(expected[loss], rel=1e-12)


class Reading(nn.Module):
    """The pixels of a 2 x 2 image as the logits of four classes; wrong while in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.one * (-1 if self.training else 1)


def test_accuracy_equals_a_count_by_hand(cpu):
    likes = torch.tensor([0, 1, 2, 3, 3, 3, 0])
    targets = torch.tensor([0, 1, 1, 3, 2, 3, 1])
    net = FlatNet(Reading().train())
    examples = Examples(F.one_hot(likes, 4).float().view(7, 1, 2, 2), targets)
    assert accuracy(net, examples, cpu) == pytest.approx(100 * 4 / 7)
    found = measures(net, examples, cpu)
    assert tuple(found) == names_in("training.metrics")
    assert found["accuracy"] == accuracy(net, examples, cpu)


def test_logits_do_not_depend_on_the_batch(cpu):
    net, images = FlatNet(module()), torch.randn(7, 1, 8, 8, generator=streams.generator(0))
    with torch.no_grad():
        expected = copy.deepcopy(net.module).eval()(images)
    for batch in (3, 7, 1000):
        found = logits(net, images, cpu, batch=batch)
        assert not found.requires_grad
        torch.testing.assert_close(found, expected)


def test_forward_operations_of_a_convnet_equal_the_count_by_hand(cpu):
    net = FlatNet(ConvNet(Shape(3, 32, 10), width=16, depth=3))
    net.module.train()
    convolutions = 2 * 9 * (3 * 16 * 32**2 + 16 * 16 * 16**2 + 16 * 16 * 8**2)
    assert forward_flops(net, (3, 32, 32), cpu) == convolutions + 2 * 16 * 4 * 4 * 10
    assert net.module.training


def test_short_and_whole_batches_find_their_own_rows():
    strategy, order = "flip_crop_rotate", torch.tensor([5, 3, 1, 0, 2, 4])
    rows = Rows(3, 2, strategy, torch.device("cpu"))
    for number in range(4):  # a pass leaves the rows ready for the next
        found = rows.fill(order, streams.generator(number))
        random = streams.generator(number)
        for step in range(2):
            index, group, uniform, mix = rows.next()
            drawn = augment.draw(strategy, 3, random)
            assert index.tolist() == order[3 * step : 3 * step + 3].tolist()
            assert torch.equal(drawn.uniform, uniform)
            assert drawn.group == found[step] == rows.names[group] and mix is None
    plain = Rows(3, 2, "none", torch.device("cpu"))
    assert plain.fill(order, streams.generator(0)) == [None, None]


def test_a_rehearsal_leaves_no_trace(cpu):
    one = trainer(cpu, RECIPE)
    start = one.net.snapshot()
    expected = one.fit(start, "a", keep=[4])[0]
    ticks = iter(range(100))
    # two batches of 4 and one of 2, each rehearsed in one tick, in 5 passes
    assert one.rehearse(lambda: float(next(ticks))) == 5 * (2 + 1)
    assert torch.equal(one.fit(start, "a", keep=[4])[0], expected)


def moved(compute: Compute, recipe: Recipe = RECIPE) -> tuple[Tensor, float]:
    """How far a training goes, by parameter, and its last loss."""
    spec, losses = Spec("convnet", SHAPE, width=8, depth=2), []
    start = spec.fresh("start")
    one = Trainer(spec.network(compute.device), recipe, compute, examples(), networks=1)
    one.fit(start, "a", progress=lambda *call: losses.append(call[2]["loss"]))
    return one.net.snapshot() - start, losses[-1]


@pytest.mark.skipif(not device._compiler(), reason="no C++ compiler")
def test_compiled_training_equals_plain_training(cpu, ran):
    found, loss = moved(replace(cpu, compile="on", report=pytest.fail))
    assert ran == ["forward", "backward"] * 5 * 3  # three batches in five passes
    plain, plain_loss = moved(cpu)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.skipif(not device._compiler(), reason="no C++ compiler")
def test_compiled_training_in_bf16_is_as_near_to_float32_as_plain_bf16(cpu, ran):
    def strays(compute: Compute) -> float:
        return float((moved(compute, recipe)[0] - exact).norm() / exact.norm())

    recipe = replace(RECIPE, batch=COUNT)  # one shape to compile
    exact, rounded = moved(cpu, recipe)[0], replace(cpu, precision="bf16")
    assert ran == []
    rounding = strays(rounded)
    assert 1e-3 < rounding < 0.3
    assert strays(replace(rounded, compile="on", report=pytest.fail)) < 2 * rounding
    assert ran == ["forward", "backward"] * 5


def gsam_step(net: nn.Module, images: Tensor, targets: Tensor, recipe: Recipe) -> None:
    """One step, parameter by parameter, as the paper writes it."""
    weights = list(net.parameters())

    def gradients() -> list[Tensor]:
        loss = PLAIN_LOSSES[recipe.loss](net(images), targets)
        return list(torch.autograd.grad(loss, weights, materialize_grads=True))

    plain = gradients()
    start = [w.detach().clone() for w in weights]
    length = sum(((w.abs() * g) ** 2).sum() for w, g in zip(start, plain, strict=True)).sqrt()
    with torch.no_grad():
        for weight, w, g in zip(weights, start, plain, strict=True):
            weight += recipe.rho * w**2 * g / length
    flat = gradients()
    inner = sum((g * h).sum() for g, h in zip(plain, flat, strict=True))
    square = sum((h**2).sum() for h in flat)
    with torch.no_grad():
        for weight, w, g, h in zip(weights, start, plain, flat, strict=True):
            across = g - inner / square * h
            weight.copy_(w - recipe.lr * (h - recipe.alpha * across))


FLAT = Recipe(passes=3, lr=0.1, batch=4, momentum=0.0, weight_decay=0.0, loss="ce", rho=0.5)


@pytest.mark.parametrize("alpha", [0.0, 0.7], ids=["SAM", "GSAM"])
def test_flat_training_equals_its_formula(cpu, alpha):
    recipe, given = replace(FLAT, alpha=alpha), examples("ce", torch.float64)
    expected = module().double()
    for index in range(recipe.passes):
        random = streams.generator(4, index)
        order = torch.randperm(COUNT, generator=random)
        for chosen in order.split(recipe.batch):
            drawn = augment.draw(recipe.augment, len(chosen), random)
            images = augment.augment(given.images[chosen], drawn)
            gsam_step(expected, images, given.targets[chosen], recipe)
    one = trainer(cpu, recipe, module().double(), given)
    start = one.net.snapshot()
    one.fit(start, 4)
    found, wanted = one.net.vector, nn.utils.parameters_to_vector(expected.parameters()).detach()
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    one.recipe = replace(recipe, rho=0.0)
    one.fit(start, 4)
    assert float((one.net.vector - wanted).abs().max()) > 1e-4


def test_without_a_radius_flat_training_is_plain(cpu):
    """Also as the radius shrinks: the part of g across itself is nothing, whatever alpha."""
    given = examples("ce", torch.float64)

    def moved(**changed) -> Tensor:
        one = trainer(cpu, replace(FLAT, **changed), module().double(), given)
        start = one.net.snapshot()
        one.fit(start, 4)
        return one.net.snapshot() - start

    plain = moved(rho=0.0)
    assert torch.equal(moved(rho=0.0, alpha=0.7), plain)
    torch.testing.assert_close(moved(rho=1e-9, alpha=0.7), plain, rtol=1e-6, atol=1e-10)


def test_momentum_and_decay_work_on_the_flat_gradient(cpu):
    given = examples("ce", torch.float64)
    recipe = replace(FLAT, alpha=0.7, passes=1, batch=COUNT, weight_decay=0.3)
    decayed = trainer(cpu, recipe, module().double(), given)
    start = decayed.net.snapshot()
    decayed.fit(start, 4)
    plain = trainer(cpu, replace(recipe, weight_decay=0.0), module().double(), given)
    plain.fit(start, 4)
    difference = decayed.net.vector - plain.net.vector
    torch.testing.assert_close(difference, -0.1 * 0.3 * start, rtol=1e-9, atol=1e-12)


class Normed(nn.Module):
    """A linear map behind batch norm, which keeps running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(64, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x.flatten(1)))


def test_running_statistics_are_those_of_the_first_pass_of_a_flat_step(cpu):
    given, recipe = examples("ce"), replace(FLAT, passes=1, batch=COUNT, augment="none")
    one = trainer(cpu, recipe, Normed(), given)
    seen = one.net.module.first(given.images.flatten(1)).detach()
    before = one.net.module.norm.running_mean.clone()
    one.fit(one.net.snapshot(), 4)
    norm = one.net.module.norm
    torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * seen.mean(0))
    assert int(norm.num_batches_tracked) == 1
