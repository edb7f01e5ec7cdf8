"""Print the oldest torch and torchvision that pyproject.toml allows, as pip asks for them:
`torch>=2.11,<2.15` there is `torch==2.11.*` here.
"""

import re
import tomllib
from pathlib import Path

text = Path(__file__).parents[1].joinpath("pyproject.toml").read_text()
for need in tomllib.loads(text)["project"]["dependencies"]:
    if found := re.match(r"(torch|torchvision)>=([\d.]+)", need):
        print("{}=={}.*".format(*found.groups()))
