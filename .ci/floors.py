"""Print the lowest versions that a pyproject.toml allows, as a requirements file."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
    print(re.sub(r">=([\w.]+).*", r"==\1", requirement))
