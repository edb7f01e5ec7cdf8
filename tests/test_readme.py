"""README and docs: short, with every committed result, and with links that lead somewhere."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from apm_core.report import table

REPO = Path(__file__).parents[1]
PAGES = [*sorted(REPO.glob("*.md")), *sorted((REPO / "docs").glob("*.md"))]
MEASURED = sorted((REPO / "benchmarks" / "results").glob("*.json"))
FILES = [path for path in MEASURED if {"run", "ceiling"} <= json.loads(path.read_text()).keys()]


def test_there_are_results():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_table_of_a_results_file_stands_in_the_docs(path):
    expected = table.markdown(json.loads(path.read_text()))
    assert expected in (REPO / "docs/results.md").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_results_file_says_where_and_when_it_was_measured(path):
    run = json.loads(path.read_text())["run"]
    assert run["device"] and run["date"] and run["versions"]["torch"]


def test_the_readme_is_short():
    assert len((REPO / "README.md").read_text().splitlines()) <= 150


def test_there_is_one_version():
    version = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((REPO / "CITATION.cff").read_text())["version"] == version
    newest = re.search(r"^## ([\d.]+)", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == version


def anchors(page: Path) -> set[str]:
    """What a link can name in `page`: its headings, as GitHub writes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", link):
            continue  # another site
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        assert not heading or heading in anchors(target), link
