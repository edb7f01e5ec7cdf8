"""`apm fit`: the config that it writes fits into the hours, and nothing richer does."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from apm_core.cli import fitted
from apm_core.cli.commands import main
from apm_core.data.survey import Survey
from apm_core.errors import ConfigError
from apm_core.estimate import fitting
from apm_core.estimate.fitting import LAST, LEVELS, SHARE, Wish, fit
from apm_core.estimate.speed import Speed
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings

FAST = Speed("cpu", 1e-11, 1e-9, 1e-3)
CLASSES = [f"class {number}" for number in range(10)]
PHOTOS = Survey(dict.fromkeys(CLASSES, 400), dict.fromkeys(CLASSES, 100), 300, (200, 500), 3)
WISH = Wish(1.0, 10, 2, "pets", "path/to/pets", 2)


def chosen(hours: float, found: Survey = PHOTOS, speed: Speed = FAST, **wish) -> fitting.Choice:
    return fit(found, replace(WISH, hours=hours, **wish), {}, lambda _: speed)


def richness(choice: fitting.Choice) -> tuple[int, int, int]:
    config = choice.config
    levels = [(one.width, one.teachers, one.networks) for one in (LAST, *LEVELS[::-1])]
    own = config["teachers"]["width"], config["aligned_teachers"]["n"]
    level = levels.index((*own, config["evaluate"]["networks"]))
    return config["dataset"]["resolution"], level, config["distill"]["rounds"]


def test_what_is_chosen_fits_and_one_round_more_does_not():
    choice = chosen(1.0)
    assert choice.total <= SHARE * 3600
    rounds = choice.config["distill"]["rounds"]
    assert fitting.ENOUGH <= rounds < fitting.MOST
    per_round = choice.seconds["distill"] / rounds
    assert choice.total + 1.1 * per_round > SHARE * 3600


def test_more_hours_and_faster_machines_give_more():
    found = [richness(chosen(hours)) for hours in (0.3, 0.6, 1, 2, 4, 8, 30)]
    assert found == sorted(found) and len(set(found)) > 4
    slow = replace(FAST, flop_s=1e-10, value_s=1e-8)
    assert richness(chosen(2.0, speed=slow)) < richness(chosen(2.0))


def test_the_config_is_a_run_of_the_method_and_its_control():
    choice = chosen(1.0)
    plan = Plan(RunSettings.of(choice.config))
    assert list(plan.entries) == ["random_plus", "apm_plus"]
    assert plan.merge("apm_plus").labels == "mean" == plan.merge("random_plus").labels
    assert plan.merge("apm_plus").label_epoch == plan.pool("aligned_teachers").training.epochs
    own = plan.distill("apm_plus").own
    assert own.teacher_epochs[1] == plan.pool("aligned_teachers").training.epochs
    record = plan.collect().record
    for section, values in choice.config.items():
        if section not in ("compute", "ipc", "distill", "methods"):
            for key, value in values.items():
                if key not in ("ceiling", "data_dir"):
                    assert record[section][key] == value


def test_students_have_the_measured_batches():
    batches = {images: fitting._batch(images) for images in (40, 100, 400, 10_000)}
    assert batches == {40: 16, 100: 16, 400: 64, 10_000: 256}


def test_images_without_zca_move_by_larger_steps():
    rates = {}
    for hours in (0.3, 8):
        config = chosen(hours).config
        rates[config["dataset"]["whitening"]] = config["methods"]["apm_plus"]["lr_images"]
    assert rates["channel"] > 20 * rates["zca"]


def test_small_classes_have_no_tiles_and_smaller_ones_are_refused():
    few = replace(PHOTOS, train={**PHOTOS.train, "class 3": 39})
    assert chosen(1.0, few).config["distill"]["tiles"] == 1
    assert chosen(1.0).config["distill"]["tiles"] == 2
    none = replace(PHOTOS, train={**PHOTOS.train, "class 3": 9})
    with pytest.raises(ConfigError, match="class 'class 3' has only 9 training images: lower"):
        chosen(1.0, none)


def test_it_says_why_there_are_no_tiles():
    few = replace(PHOTOS, train={**PHOTOS.train, "class 3": 39})
    reason = "whole images: a class has 39 training images, and tiles of 2 start from 40"
    for found, told in ((few, 1), (PHOTOS, 0)):
        lines = fitted.summary(found, WISH, chosen(1.0, found), None)
        assert list(lines).count(reason) == told


def test_images_are_never_enlarged():
    small = replace(PHOTOS, side=40, sides=(40, 40))
    assert chosen(100.0, small).config["dataset"]["resolution"] == 32
    digits = replace(PHOTOS, side=8, sides=(8, 8), channels=1)
    assert chosen(1.0, digits).config["dataset"]["resolution"] == 8
    with pytest.raises(ConfigError, match=r"of 8 pixels can be .* that 16 divides: --tiles 1"):
        chosen(1.0, digits, tiles=4)
    with pytest.raises(ConfigError, match="images of 6 pixels are too small: at least 8"):
        chosen(1.0, replace(digits, side=6), tiles=1)


def test_too_few_hours_are_one_line_that_says_how_many():
    with pytest.raises(ConfigError, match=r"--hours 0.001: the smallest .* takes about") as error:
        chosen(0.001)
    hours = float(re.search(r"takes about ([\d.e-]+)", str(error.value)).group(1))
    assert chosen(1.05 * hours)


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """Two classes of thirty images, on a machine of a known speed."""
    monkeypatch.setattr(fitted, "measured", lambda *_, **__: FAST)
    monkeypatch.setattr(fitted, "fused_share", lambda *_: FAST.fused)
    monkeypatch.setattr(fitted, "busy", lambda: "other programs run")
    for name in ("cat", "dog"):
        (tmp_path / "my pets" / name).mkdir(parents=True)
        for number in range(30):
            Image.new("RGB", (40, 30 + number)).save(tmp_path / f"my pets/{name}/{number}.png")
    return tmp_path / "my pets"


def test_the_file_is_yaml_that_says_what_is_expected(pets, tmp_path):
    out = tmp_path / "pets.yaml"
    arguments = ["fit", str(pets), "--out", str(out), "--ipc", "5", "--cores", "1"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert f"--configfile {out} --cores 1 -- results/my_pets_ipc5.json" in done.output
    text = out.read_text()
    assert "2 classes, 48 training and 12 test images, colour, 30 to 59 pixels" in text
    assert "expected: " in text and "measured on 1 cores" in text
    assert "# other programs run" in text and "\nother programs run" in done.output
    config = yaml.safe_load(text)
    assert Plan(RunSettings.of(config)) and config["dataset"]["data_dir"] == str(pets)
    assert CliRunner().invoke(main, arguments).exit_code == 1
    assert out.read_text() == text
    assert "say --force" in CliRunner().invoke(main, arguments).output
    assert CliRunner().invoke(main, [*arguments, "--force"]).exit_code == 0
    shown = CliRunner().invoke(main, ["fit", str(pets), "--ipc", "5", "--cores", "1"])
    assert yaml.safe_load(shown.output) == config


def test_names_are_those_of_files():
    assert fitted.named(Path("a/Möwen & co.")) == "M_wen_co"
    assert fitted.named(Path("a/---é")) == "---"
    assert fitted.named(Path("a/鳥")) == "images"
