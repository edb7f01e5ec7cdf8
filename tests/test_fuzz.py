"""Whatever is fed to config, artifacts and images: a result, or the project's own errors."""

import copy
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apm_core.data import read
from apm_core.errors import ApmError, ArtifactError, ConfigError
from apm_core.runtime import store
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings

CONFIG = RunSettings().model_dump(mode="json")
JUNK = [
    None,
    True,
    0,
    -1,
    1,
    3,
    10**30,
    0.5,
    1e-300,
    float("inf"),
    float("nan"),
    "",
    "x",
    "0",
    "1e-3",
]
JUNK += [
    "../..",
    "a b",
    "$(touch pwned)",
    "a;b",
    "ü",
    "a\nb",
    [],
    [0],
    ["x"],
    {},
    {"a": 1},
    [[]],
    "x" * 9999,
]


def places(section: dict, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all keys, sections included."""
    for key, value in section.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def planned(config: dict) -> None:
    """All that the workflow asks of a config before anything runs."""
    plan = Plan(RunSettings.of(config))
    for entry in plan.entries:
        plan.distill(entry), plan.merge(entry), plan.distill_pool(entry), plan.label_pool(entry)
    for network in plan.protocols:
        plan.evaluate(network)
    for network in plan.settings.evaluate.ceiling.architectures:
        plan.ceiling(network)
    for pool in plan.settings.pools:
        plan.pool(pool), plan.pool_key(pool), plan.groups(pool)
    plan.prepare(), plan.collect(), plan.nas_proxy(), plan.nas_reference(), plan.nas()
    assert all(network.network for network in plan.networks)


def test_a_config_is_planned_or_refused_in_one_line():
    chance, keys, refused = random.Random(0), list(places(CONFIG)), 0
    for _ in range(1500):
        config = copy.deepcopy(CONFIG)
        for path in chance.sample(keys, chance.choice([1, 1, 1, 2, 4])):
            section = config
            for name in path[:-1]:
                section = section.get(name) if isinstance(section, dict) else None
            if isinstance(section, dict):
                key = f"{path[-1]}x" if chance.random() < 0.1 else path[-1]
                section[key] = copy.deepcopy(chance.choice(JUNK))
        try:
            planned(config)
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000, error
    assert 700 < refused < 1500


@pytest.fixture
def artifact(tmp_path) -> Path:
    path = tmp_path / "one.zarr.zip"
    arrays = {"images": np.ones((3, 2), np.float32), "classes": np.arange(3)}
    store.write(path, "shard", arrays, settings={"lr": 0.1})
    return path


def rewritten(path: Path, edit: Callable[[str, bytes], bytes]) -> None:
    """The zip with other members, sound as a zip."""
    with zipfile.ZipFile(path) as old:
        members = {name: edit(name, old.read(name)) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in members.items():
            new.writestr(name, content)


def test_an_artifact_is_read_or_refused_in_one_line(artifact):
    chance, whole, refused = random.Random(0), artifact.read_bytes(), 0
    expected = store.read(artifact, "shard")

    def edit(name: str, content: bytes) -> bytes:
        if chance.random() < 0.5:
            return content
        value = json.loads(content) if name.endswith("zarr.json") else None
        if value is None or chance.random() < 0.3:
            return chance.randbytes(chance.randrange(40))
        path = chance.choice(list(places(value)))
        section = value
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = chance.choice([*JUNK[:9], *JUNK[11:]])
        return json.dumps(value).encode()

    for _ in range(600):
        artifact.write_bytes(whole)
        rewritten(artifact, edit)
        try:
            found = store.read(artifact, "shard")
        except ArtifactError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).startswith(f"{artifact}: "), error
        else:
            assert found.content == expected.content
            assert {k: v.tolist() for k, v in found.arrays.items()} == {
                k: v.tolist() for k, v in expected.arrays.items()
            }
    assert refused > 200


def test_codecs_that_could_run_code_are_refused(artifact):
    def pickled(name: str, content: bytes) -> bytes:
        if name != "images/zarr.json":
            return content
        value = json.loads(content)
        value["codecs"] = [{"name": "numcodecs.pickle", "configuration": {"protocol": 5}}]
        return json.dumps(value).encode()

    rewritten(artifact, pickled)
    with pytest.raises(ArtifactError, match="the file is damaged"):
        store.read(artifact, "shard")


def test_images_are_read_or_refused_in_one_line(tmp_path):
    chance, random_pixels, refused = random.Random(0), np.random.default_rng(0), 0
    kinds = ("png", "jpg", "bmp", "gif", "tif", "webp")
    for trial in range(120):
        root = tmp_path / str(trial)
        for part in ("train", "test"):
            for name in ("cat", "dog"):
                kind = chance.choice(kinds)
                file = root / part / name / f"0.{kind}"
                file.parent.mkdir(parents=True)
                pixels = random_pixels.integers(0, 256, (9, 9, 3), np.uint8)
                Image.fromarray(pixels).save(file)
                data, damage = bytearray(file.read_bytes()), chance.random()
                if damage < 0.2:
                    data = data[: chance.randrange(len(data))]
                elif damage < 0.5:
                    for _ in range(chance.randrange(1, 30)):
                        data[chance.randrange(len(data))] = chance.randrange(256)
                elif damage < 0.6:
                    data = bytearray(chance.randbytes(200))
                file.write_bytes(data)
        try:
            found = read("folder", data_dir=root, resolution=8)
        except ApmError as error:
            refused += 1
            assert "\n" not in str(error), error
        else:
            assert found.train.images.shape[1:] == found.test.images.shape[1:] == (3, 8, 8)
    assert 60 < refused < 120
