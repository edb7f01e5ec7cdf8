"""The benchmarks' own arithmetic, and that the pages show what they wrote."""

import json

import numpy as np
import pytest
import yaml
from plan import Plan, check_schema

from apm_core import methods
from apm_core.runtime.device import Compute
from benchmarks import ablation, docs, measure, overhead, picture, pipeline, precision, tables
from benchmarks.workload import CIFAR10, apm, job, spec_of


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
    ceiling = {"convnet": scores.pop("full")}
    methods = {name: {"accuracy": {"convnet": score}} for name, score in scores.items()}
    return {"run": {"ipc": ipc}, "methods": methods, "ceiling": ceiling}


def test_the_summary_names_the_best_system_that_is_neither_ours_nor_real_images():
    few = result(1, random_plus=40.0, random_hard=39.0, apm_plus=41.0, dm=20.0, dc=30.0, full=80.0)
    assert tables.summary(few).splitlines()[-1] == (
        "| 1 per class | 41.0 ± 0.5 | dc: 30.0 ± 0.5 | 40.0 ± 0.5 | 80.0 ± 0.5 |"
    )


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


def test_precision_runs_are_cut_to_what_is_compared():
    preset = precision.ROOT / "presets/cifar10_cpu.yaml"
    config = precision.compared(preset, ["distill.rounds=7", "teachers.n=1"])
    assert (config["distill"]["rounds"], config["teachers"]["n"]) == (7, 1)
    assert config["teachers"]["width"] == 32 and config["teachers"]["lr"] == 0.05
    assert config["distill"]["methods"] == ["apm"] and config["nas"]["networks"] == 0


def test_the_generated_work_has_the_real_shapes(cpu):
    assert spec_of(128).fresh(0).shape == (320_010,)
    given = job(spec_of(4), cpu, 2)
    images, classes = given.real_images()
    assert images.shape == (20, *CIFAR10.image) and classes.bincount().tolist() == [2] * 10
    method = apm(epochs=5, batch=10)
    figures = method.step(method.init(given), 0)
    assert set(figures) == {"match", "ce", "lr_images"}


def test_the_default_path_is_the_last_of_the_variants(cpu):
    from benchmarks.workload import variants

    assert list(variants(cpu)) == ["float32", "float32, compiled"]
    both = variants(Compute(cpu.device, "bf16"))
    assert list(both) == ["float32", "float32, compiled", "bf16", "bf16, compiled"]
    assert both["bf16, compiled"].compile == "on"


def variants() -> list[tuple[str, int]]:
    plan = yaml.safe_load(ablation.VARIANTS.read_text())
    return [
        (name, ipc) for name, v in plan["variants"].items() for ipc in v.get("ipc", plan["ipc"])
    ]


@pytest.mark.parametrize(("name", "ipc"), variants())
def test_every_variant_of_the_ablation_can_be_distilled(name, ipc):
    plan = yaml.safe_load(ablation.VARIANTS.read_text())
    variant = plan["variants"][name]
    changes = [plan["base"], {"ipc": ipc}, plan["ipc"][ipc], variant.get("config", {})]
    config = pipeline.overlaid(pipeline.config_of([]), *changes)
    check_schema(
        config, yaml.safe_load((ablation.ROOT / "workflow/schemas/config.schema.yaml").read_text())
    )
    methods.build(variant["method"], json.loads(Plan(config).distill(variant["method"])))


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
