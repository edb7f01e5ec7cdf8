"""Random streams are named, and nothing else decides them."""

import pytest
import torch

from apm_core.runtime import streams


def test_equal_paths_give_equal_streams():
    first = torch.rand(100, generator=streams.generator(3, "distill", 0, 7, "batch"))
    torch.rand(5)
    second = torch.rand(100, generator=streams.generator(3, "distill", 0, 7, "batch"))
    assert torch.equal(first, second)


def test_every_element_its_place_and_its_type_matter():
    paths = [
        (),
        (1,),
        ("1",),
        (True,),
        (1, 2),
        (2, 1),
        (12,),
        ("1, 2",),
        (1, "2"),
        (1, 2, ""),
        ("a", "b"),
        ("ab",),
        ("a', 'b",),
    ]
    assert len({streams.derive(*path) for path in paths}) == len(paths)


def test_seeds_are_the_same_on_every_machine_and_in_every_version():
    assert streams.derive(0, "teacher", 1) == 7240665576482171480
    assert all(0 <= streams.derive(index) < 2**63 for index in range(200))


def test_streams_of_neighbours_have_nothing_in_common():
    a, b = (torch.rand(20000, generator=streams.generator(0, index)) for index in (1, 2))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.03


def test_seeded_code_draws_from_its_own_stream():
    with streams.seeded("weights", 0):
        first = torch.rand(10)
    torch.manual_seed(5)
    with streams.seeded("weights", 0):
        second = torch.rand(10)
    assert torch.equal(first, second)
    assert torch.equal(first, torch.rand(10, generator=streams.generator("weights", 0)))


def test_seeded_restores_the_global_generator():
    before = torch.get_rng_state()
    with streams.seeded(1):
        torch.rand(10)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_restores_the_global_generator_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="inside"), streams.seeded(1):
        torch.rand(10)
        raise ValueError("inside")
    assert torch.equal(torch.get_rng_state(), before)
