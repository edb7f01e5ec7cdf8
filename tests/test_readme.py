"""The numbers in the README are those of the committed results files."""

import json
import re
from pathlib import Path

import pytest

from apm_core.report import table

REPO = Path(__file__).parents[1]
RESULTS = sorted((REPO / "benchmarks" / "results").glob("*_ipc*.json"))
FILES = [path for path in RESULTS if not path.name.startswith("precision_")]


def test_there_are_results():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_table_of_a_results_file_stands_in_the_readme(path):
    expected = table.markdown(json.loads(path.read_text()))
    assert expected in (REPO / "README.md").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_results_file_says_where_and_when_it_was_measured(path):
    run = json.loads(path.read_text())["run"]
    assert run["device"] and run["date"] and run["versions"]["torch"]


BLOCKS = {
    "python": ["apm_core/methods/dm.py", "apm_core/methods/__init__.py"],
    "yaml": ["config.yaml"],
}


def test_the_walk_through_a_method_quotes_the_code_as_it_is():
    text = (REPO / "docs/add-a-method.md").read_text()
    found = re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)
    assert len(found) >= 7
    for language, block in found:
        assert any(block in (REPO / name).read_text() for name in BLOCKS[language]), block
