"""The benchmarks' own arithmetic, and that the pages show what they wrote."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apm_core import distilled, methods
from apm_core.data.images import ImageForm, decode
from apm_core.errors import ConfigError
from apm_core.nets import nasbench201
from apm_core.runtime.device import Compute
from apm_core.settings.plan import Plan
from apm_core.settings.product import Product
from benchmarks import (
    budget,
    chaos,
    decoding,
    docs,
    headline,
    measure,
    memory,
    overhead,
    picture,
    pipeline,
    precision,
    product,
    seeds,
    tables,
    trajectory,
)
from benchmarks import round as rounds
from benchmarks.pipeline import config_of, plan_of
from benchmarks.workload import CIFAR10, apm, job, spec_of, variants


@pytest.mark.parametrize("page", docs.PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_the_committed_figures(page):
    assert docs.current(page) == page.read_text()


def test_every_file_of_figures_has_a_table():
    pages = "".join(page.read_text() for page in docs.PAGES)
    shown = {file for _, _, files, _ in docs.BLOCK.findall(pages) for file in files.split()}
    assert shown == {path.stem for path in measure.RESULTS.glob("*.json")}


@pytest.mark.parametrize("mark", ["table: steps step_cpu -->\n", "table: steps -->\n<!-- end -->"])
def test_a_mark_without_an_end_or_a_file_is_refused(tmp_path, mark):
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {mark}prose")
    with pytest.raises(ValueError, match="a mark is misspelt"):
        docs.current(page)


def result(ipc: int, **means: float) -> dict:
    scores = {name: {"mean": mean, "std": 0.5} for name, mean in means.items()}
    ceiling = {"convnet": scores.pop("full")} if "full" in scores else {}
    methods = {name: {"accuracy": {"convnet": score}} for name, score in scores.items()}
    return {"run": {"ipc": ipc}, "methods": methods, "ceiling": ceiling}


def test_the_summary_names_the_best_system_that_is_neither_ours_nor_real_images():
    few = result(1, random_plus=40.0, random_hard=39.0, apm_plus=41.0, dm=20.0, dc=30.0, full=80.0)
    assert tables.summary(few).splitlines()[-1] == (
        "| 1 per class | 41.0 ± 0.5 | dc: 30.0 ± 0.5 | 40.0 ± 0.5 | 80.0 ± 0.5 |"
    )


def test_a_published_number_stands_beside_ours_of_the_same_form():
    forms = {"apm_plus": 60.0, "apm_plus_tiles": 70.0, "random_plus_tiles": 55.0}
    report = result(10, **forms, full=85.0)
    report["run"]["settings"] = {"dataset": {"source": "cifar10"}}
    assert tables.published_size(report).splitlines()[-1] == (
        "| cifar10, 10 per class | 60.0 ± 0.5 |  | at_bptt: 70.6"
        " | 70.0 ± 0.5 | 55.0 ± 0.5 | ncfm: 71.8 | 85.0 ± 0.5 |"
    )
    del report["methods"]["apm_plus"]
    header, _, line = tables.published_size(report).splitlines()
    assert header == "| images | apm_plus, as tiles | real images | best published | full data |"
    assert line.endswith("| 70.0 ± 0.5 | 55.0 ± 0.5 | ncfm: 71.8 | 85.0 ± 0.5 |")
    report["run"]["settings"] = {"dataset": {"source": "folder", "name": "cifar100_w128"}}
    line = tables.published_size(report).splitlines()[-1]
    assert line.startswith("| cifar100, 10 per class |") and "| dance: 49.8 |" in line


def test_runs_of_the_same_images_are_one_row():
    whole, tiles = result(10, apm_plus=60.0, full=85.0), result(10, apm_plus_tiles=70.0)
    other = result(50, apm_plus=65.0)
    for report in (whole, tiles, other):
        report["run"]["settings"] = {"dataset": {"source": "cifar10"}}
    row, last = tables.published_size(whole, tiles, other).splitlines()[2:]
    assert row.startswith("| cifar10, 10 per class | 60.0 ± 0.5 |") and "| 70.0 ± 0.5 |" in row
    assert row.endswith("| 85.0 ± 0.5 |") and last.startswith("| cifar10, 50 per class | 65.0")


def test_both_ways_to_decode_give_the_same_images(tmp_path):
    paths = decoding.pictures(tmp_path, 3, decoding.QUICK_SIZE)
    ours = decode(paths, ImageForm(resolution=decoding.SIDE))
    assert np.array_equal(decoding.by_pillow(paths), ours)
    assert len({image.tobytes() for image in ours}) == 3


def test_a_picture_has_a_column_for_each_class():
    black, white = (np.full((10, 2, 8, 8, 3), shade, dtype=np.uint8) for shade in (0, 255))
    sheet = picture.picture({"real": black, "distilled": white}, [str(c) for c in range(10)])
    assert 800 <= sheet.width <= picture.WIDTH
    dark = np.asarray(sheet)[30, picture.MARGIN :, 0] == 0  # a line through the first images
    assert np.count_nonzero(np.diff(dark.astype(int)) == -1) == 10


def test_functions_are_timed_in_turns(cpu):
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = measure.together(functions, cpu, repetitions=3, seconds=0.0)
    assert calls == ["a", "a", "b", "b", *"ababab"]
    assert {name: len(of) for name, of in times.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_repetition_by_repetition():
    times = {"slow": [2.0, 30.0, 4.0], "fast": [1.0, 10.0, 1.0]}
    found = measure.ratio(times, "fast", "slow")
    assert found == {"median": 3.0, "min": 2.0, "max": 4.0}


def test_a_product_counts_its_operations(cpu):
    product, operations = measure.matrix_product(cpu)
    assert product().shape == (2048, 2048) and operations == 2 * 2048**3


def test_a_function_runs_elsewhere_each_time_it_is_called(tmp_path, monkeypatch):
    log = tmp_path / "log"
    (tmp_path / "other.py").write_text(
        "import sys\nfrom benchmarks.measure import serve\n"
        "serve(lambda: open(sys.argv[1], 'a').write('x'))\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{precision.ROOT}")
    other = measure.Elsewhere("other", log)
    for count in (1, 2):
        other()
        assert log.read_text() == "x" * count
    other.close()
    with pytest.raises((RuntimeError, ValueError)):
        other()


@pytest.mark.parametrize(
    ("intervals", "length"), [([], 0), ([(1, 3), (2, 5)], 4), ([(7, 8), (1, 3), (2, 2.5)], 3)]
)
def test_the_union_of_intervals_is_counted_once(intervals, length):
    assert overhead.covered(intervals) == length


def test_a_logs_first_and_last_time_are_read(tmp_path):
    log = tmp_path / "log"
    log.write_text("01:02:03 settings {}\nno time here\n01:02:10 5/9 3 s left\n01:03:00 done\n")
    assert overhead.interval(log) == (3723.0, 3780.0)


def test_the_logs_of_jobs_that_train_are_known_by_their_names():
    rules = "".join(file.read_text() for file in (measure.ROOT / "workflow/rules").glob("*.smk"))
    wildcards = {"{entry}": "apm", "{pool}": "teachers"}
    for rule in re.split(r"^rule ", rules, flags=re.MULTILINE)[1:]:
        [log] = re.findall(r'"(logs/.*\.log)"', rule)
        for wildcard, value in wildcards.items():
            log = log.replace(wildcard, value)
        assert overhead.trains(Path(log)) == ("gpu=gpus" in rule), log


def test_precision_runs_are_cut_to_what_is_compared():
    preset = precision.ROOT / "presets/cifar10_cpu.yaml"
    config = precision.compared(preset, ["distill.rounds=7", "teachers.n=10"])
    assert (config["distill"]["rounds"], config["teachers"]["n"]) == (7, 10)
    assert config["teachers"]["width"] == 32
    assert config["distill"]["methods"] == ["apm"] and config["nas"]["networks"] == 0
    plan = pipeline.plan_of(config)
    assert plan.protocols == {"convnet": ["own"]} and plan.settings.teachers.lr == 0.05


def test_the_generated_work_has_the_real_shapes(cpu):
    assert spec_of(128).fresh(0).shape == (320_010,)
    given = job(spec_of(4), cpu, 2)
    images, classes = given.real_images()
    assert images.shape == (20, *CIFAR10.image) and classes.bincount().tolist() == [2] * 10
    method = apm(epochs=5, batch=10)
    figures = method.round(method.start(given), 0)
    assert set(figures) == {"match", "ce", "lr_images"}


def test_the_default_path_is_the_last_of_the_variants(cpu):
    assert list(variants(cpu)) == ["float32"]
    assert list(variants(Compute(cpu.device))) == ["float32", "float32, compiled"]
    both = variants(Compute(cpu.device, "bf16"))
    assert list(both) == ["float32", "float32, compiled", "bf16", "bf16, compiled"]
    assert both["bf16, compiled"].compile == "on"
    own = variants(Compute(cpu.device, kernels=True))
    assert list(own) == ["float32", "float32, compiled", "float32, own kernels"]
    assert [path.kernels for path in own.values()] == [False, False, True]


def test_both_image_updates_are_the_same_gradient(cpu):
    given, students = rounds.work(4, 2, 7, Compute(cpu.device, compile="off"))
    ours = rounds.our_update(given, students, given.compute)()
    torch.testing.assert_close(ours, rounds.plain_update(given, students)(), rtol=1e-3, atol=1e-6)


def test_the_peak_of_rounds_and_the_time_of_the_last_period_are_measured(cpu):
    method = apm(epochs=5, batch=10)
    found = memory.rounds(method, job(spec_of(4), cpu, 2), 4)
    assert found["seconds"] > 0 and found["bytes"] >= 0


def test_the_ways_through_a_trajectory_agree(cpu):
    ways = trajectory.ways(3, cpu, torch.float64)
    truth = ways["unrolled"]()
    torch.testing.assert_close(ways["exact"](), truth, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(ways["tesla"](), truth, rtol=1e-3)


def test_settings_are_changed_at_any_depth():
    changes = ["teachers.epochs=4", "evaluate.overrides.vgg11.epochs=7", "dataset.data_dir=x"]
    before = pipeline.config_of([])
    config = pipeline.config_of([], changes)
    assert config["teachers"] == {**before["teachers"], "epochs": 4}
    assert config["evaluate"]["overrides"] == {"vgg11": {"epochs": 7}}
    settings = pipeline.plan_of(config).settings
    assert (settings.dataset.data_dir, settings.dataset.name) == ("x", "cifar10")
    with pytest.raises(ConfigError, match=r"teachers\.epoch: there is no such key"):
        pipeline.plan_of(pipeline.config_of([], ["teachers.epoch=4"]))


def test_the_rounds_of_a_budget_can_be_laid_over_its_config():
    own = {"name": "log", "method": "apm", "logarithm": True}
    listed = ["apm", "random", own, {"name": "start", "method": "log", "start_only": True}, "dm"]
    config = pipeline.overlaid(pipeline.config_of([]), {"distill": {"methods": listed}})
    overlay = budget.overlay_of(config, {"apm": 11, "log": 12, "dm": 13})
    plan = pipeline.plan_of(pipeline.overlaid(config, overlay))
    found = {name: plan.distill(name).rounds for name in plan.entries}
    assert found == {"apm": 11, "random": None, "log": 12, "start": None, "dm": 13}
    assert plan.entry("log").settings.logarithm
    plain = pipeline.overlaid(config, {"distill": {"methods": ["apm", "random"]}})
    assert budget.overlay_of(plain, {"apm": 11}) == {"methods": {"apm": {"rounds": 11}}}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("work/digits/data.zarr.zip", "data"),
        ("work/digits/pools/experts.0a1b/0.zarr.zip", "teachers"),
        ("work/digits/distill/apm.ipc2/1.zarr.zip", "shard"),
        ("results/digits.whitening.zarr.zip", "whitening"),
        ("results/digits_ipc4.apm.zarr.zip", "distilled set"),
        ("results/digits_ipc4.json", "results"),
        ("work/digits/evaluate/ipc4.apm/convnet.json", "scores"),
        ("work/digits/ceiling/convnet.json", "scores"),
        ("work/digits/nas/ipc4.apm.json", "scores"),
        ("work/digits/nas/ipc4.apm.proxy.json", "ranking"),
        ("work/digits/nas/reference.json", "ranking"),
    ],
)
def test_the_kind_of_a_file_follows_from_its_place(tmp_path, path, kind):
    assert chaos.kind_of(tmp_path / path) == kind


def test_what_is_killed_and_damaged_is_a_valid_run():
    plan = pipeline.plan_of(pipeline.config_of([chaos.CONFIG]))
    plan.require_target("digits", "4")
    assert chaos.TARGET == "results/digits_ipc4.json"
    assert {plan.label_pool(name) for name in plan.entries} == {"teachers", None}


ABLATION = measure.ROOT / "presets/ablation_cifar10_cpu.yaml"
SWITCHED = {  # what a variant changes of the base
    "random_base": {"start_only": True},
    "published": {
        "lr_images": 1.0,
        "logarithm": False,
        "teacher_epochs": None,
        "labels": "teacher",
        "label_epoch": None,
    },
    "published_rate": {"lr_images": 1.0},
    "no_logarithm": {"logarithm": False},
    "trained_teachers": {"teacher_epochs": None, "label_epoch": None},
    "later_teachers": {"teacher_epochs": [4, 8], "label_epoch": 8},
    "labels_of_one": {"labels": "teacher"},
    "augmented": {"augment_images": True},
    "cross_entropy_1": {"ce": 1.0},
    "correct_start": {"start": "correct"},
}


@pytest.fixture(scope="module")
def ablation() -> Plan:
    return pipeline.plan_of(pipeline.config_of([ABLATION]))


def test_the_ablation_is_judged_by_held_out_images(ablation):
    ablation.require_target("ablation_cifar10_cpu", "10")
    assert ablation.prepare().images.held_out == 0.1
    assert set(ablation.entries) == {"random_hard", "base", *SWITCHED}
    assert ablation.protocols == {"convnet": ["own"]}


@pytest.mark.parametrize("name", SWITCHED)
def test_a_variant_of_the_ablation_changes_what_it_is_called_after(ablation, name):
    base, own = (ablation.entry(entry).settings.model_dump() for entry in ("base", name))
    assert {key: value for key, value in own.items() if value != base[key]} == SWITCHED[name]
    assert ablation.distill_pool(name) == ablation.label_pool(name) == "aligned_teachers"
    settings = ablation.distill(name)
    assert settings.rounds == (None if name == "random_base" else 45)
    methods.build(settings)


def test_the_published_variant_of_the_ablation_is_apm(ablation):
    """But for the pool, and for options that only `apm_plus` has."""
    plus, apm = ablation.entry("published").settings, ablation.settings.methods.apm
    off = {"augment_images": False, "start": "real", "unrolled": plus.unrolled.model_dump()}
    told = {"rounds": 45, "labels": "teacher"}
    expected: dict[str, Any] = {**apm.model_dump(), **told, **off, "teacher_epochs": None}
    assert plus.model_dump() == expected and plus.unrolled.rounds == 0


def test_the_table_of_the_ablation_has_a_column_for_each_ipc():
    rows = [("base", 1, 27.96, 3), ("base", 10, 50.0, 3), ("other", 10, 49.0, 1)]
    report = {
        "rows": [
            {"variant": name, "ipc": ipc, "sets": {"mean": mean, "std": 0.5, "n": n}}
            for name, ipc, mean, n in rows
        ]
    }
    assert tables.ablation(report).splitlines() == [
        "| held-out accuracy, % | IPC 1 | IPC 10 |",
        "| --- | ---: | ---: |",
        "| base | 28.0 ± 0.5 | 50.0 ± 0.5 |",
        "| other |  | 49.0 |",
    ]


def run_of(**means: float) -> dict[str, Any]:
    """What a results file says of entries with these accuracies."""
    return {
        "methods": {
            entry: {
                "accuracy": {"convnet": {"mean": mean, "n": 5}},
                "cost": {"distill_seconds": mean},
                "image_bytes": 1500,
                "label_bytes": 200,
            }
            for entry, mean in means.items()
        }
    }


def test_seeds_are_the_sets_of_a_row():
    config = pipeline.config_of([], ["ipc=4", "distill.methods=[apm, random]", "distill.rounds=9"])
    found = seeds.rows_of(config, [run_of(apm=50.0, random=30.0), run_of(apm=54.0, random=30.0)])
    apm, random = found
    assert (apm["variant"], apm["ipc"], apm["rounds"], random["rounds"]) == ("apm", 4, 9, None)
    assert apm["sets"]["runs"] == [50.0, 54.0] and apm["sets"]["mean"] == 52.0
    assert (apm["seconds"], apm["bytes"], apm["networks"]) == (52.0, 1700, 5)


def test_the_first_form_of_a_product_is_the_default_and_no_two_are_equal():
    forms = [Product(**changes) for changes in product.FORMS.values()]
    assert forms[0] == Product() and len({form.model_dump_json() for form in forms}) == len(forms)
    runs = [run_of(apm=mean)["methods"] for mean in (50.0, 52.0)]
    table = tables.product({"rows": product.rows("float32", runs)})
    assert table.splitlines()[-1] == "| apm, float32 | 51.0 ± 1.4 | 1.5 | 0.2 |"


@pytest.fixture
def ranking(tmp_path):
    """The path of a NAS table, and that of a config that ranks by it."""
    table, config = tmp_path / "table.csv", tmp_path / "ranking.yaml"
    rows = [f"{arch},{90 + rank}" for rank, arch in enumerate(nasbench201.sample(3, 0))]
    table.write_text("\n".join(["arch_str,accuracy", *rows]))
    config.write_text("nas: {reference: {source: table, column: accuracy}}\n")
    return table, config


@pytest.mark.workflow
def test_the_headline_run_can_be_planned_in_an_empty_folder(tmp_path, ranking):
    table, config = ranking
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(f"nas: {{reference: {{table: {table}}}}}\n")
    configs = [measure.ROOT / "tests/tiny.yaml", config, overlay]
    steps = list(headline.steps(plan_of(config_of(configs, []))))
    assert [name for name, _ in steps] == ["apm", "random", "results"]
    command = [sys.executable, "-m", "snakemake", "-n", "--directory", tmp_path / "work"]
    command += ["-s", measure.ROOT / "Snakefile", "--configfile", *configs, "--"]
    for _, files in steps:
        command += files
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.workflow
def test_the_headline_run_goes_from_an_empty_folder_to_figures(tmp_path, ranking):
    table, config = ranking
    out, work = tmp_path / "out", tmp_path / "work"
    told = {"PYTHON": sys.executable, "WORK": str(work), "TABLE": str(table), "QUICK": "1"}
    command = ["bash", "benchmarks/headline.sh", out, "tests/tiny.yaml", config]

    def run(**environment: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, **told, **environment}
        return subprocess.run(
            command, cwd=measure.ROOT, env=environment, capture_output=True, text=True
        )

    stopped = run(LIMIT="1")
    assert stopped.returncode == 1 and "run the same command again" in stopped.stdout
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    short = {f"{name}_cpu.json" for name in ("gpu", "step", "round", "memory", "scaling")}
    long = {f"headline.{labels}.digits_ipc10.json" for labels in ("teacher", "mean")}
    assert {path.name for path in out.iterdir()} == short | long
    for name in long:
        report = json.loads((out / name).read_text())
        assert set(report["methods"]) == {"apm", "random"}
        assert report["methods"]["apm"]["nas"]["networks"] == 3
    labels = [
        distilled.load(work / labels / "results/digits_ipc10.random.zarr.zip").artifact.settings
        for labels in ("teacher", "mean")
    ]
    assert [of["labels"] for of in labels] == ["teacher", "mean"]
