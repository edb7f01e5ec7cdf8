"""Put the committed figures into the pages: `python -m benchmarks.docs`.

A page is prose with marks. What stands between the two lines

    <!-- table: NAME FILE... -->
    <!-- end -->

is replaced by table NAME of `benchmarks.tables`, made of benchmarks/results/FILE.json, and a line
that says where and when the files were measured.
"""

import json
import re
from pathlib import Path
from typing import Any

from apm_core.runtime import store
from benchmarks import tables
from benchmarks.measure import RESULTS, ROOT, parser_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = "<!-- table:"
BLOCK = re.compile(rf"({MARK} (\w+) ([\w ]+) -->\n)(?:(?!<!--).)*(<!-- end -->)", re.DOTALL)


def current(page: Path) -> str:
    """The text of `page` with the tables that its marks ask for.

    Raises ValueError for a mark that is misspelt or has no end.
    """

    def block(mark: re.Match[str]) -> str:
        start, name, files, end = mark.groups()
        reports = {
            file: json.loads((RESULTS / f"{file}.json").read_text()) for file in files.split()
        }
        table = tables.TABLES[name](*reports.values())
        return f"{start}\n{table}\n\n{source(page, reports)}\n\n{end}"

    text, count = BLOCK.subn(block, page.read_text())
    if count != text.count(MARK):
        raise ValueError(f"{page}: a mark is misspelt or has no <!-- end -->")
    return text


def source(page: Path, reports: dict[str, dict[str, Any]]) -> str:
    """The line below a table: links to its files, and on what they were measured."""
    up = "../" * (len(page.relative_to(ROOT).parts) - 1)
    links = [f"[{file}]({up}benchmarks/results/{file}.json)" for file in reports]
    heads = map(head, reports.values())
    runs = [f"{at['device']}, torch {at['versions']['torch']}, {at['date']}" for at in heads]
    return f"{', '.join(links)}: {'; '.join(dict.fromkeys(runs))}"


def head(report: dict[str, Any]) -> dict[str, Any]:
    """Device and date of a report: its own, or those of its first part that has them."""
    parts = [report, *report.values()]
    return next(part for part in parts if isinstance(part, dict) and "device" in part)


def main() -> None:
    """Bring every page up to date, and say which changed."""
    parser_of(__doc__).parse_args()
    for page in PAGES:
        text = current(page)
        if text != page.read_text():
            with store.atomic_path(page) as temporary:
                temporary.write_text(text)
            print(f"written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
