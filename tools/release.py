"""Build a release and check it: `python tools/release.py 0.2.0`, or `--check` for the packages alone.

A release needs a clean tree, that version in pyproject.toml, a dated section in CHANGELOG.md, and no tag of
that name yet. The packages are in `dist/`; the tag and the upload are the maintainer's, and are printed.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = {".whl": 1_000_000, ".gz": 3_000_000}
WHEEL_NEEDS = (
    "fiberstore/__init__.pyi",
    "fiberstore/migrations/env.py",
    "fiberstore/migrations/script.py.mako",
    "fiberstore/ingest/demo_rules.toml",
    "fiberstore/py.typed",
    "fiberstore/timeline/page.html",
)
WHEEL_HAS = re.compile(r"fiberstore/.+\.(py|pyi|mako|toml|typed|html)|fiberstore-[^/]+\.dist-info/.+")
DOTTED = (".ci/", ".editorconfig", ".github/", ".pre-commit-config.yaml")  # not in an sdist


def main() -> int:
    """Build, check, and print what is wrong or what to do next; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", nargs="?", help="the version to release")
    parser.add_argument("--check", action="store_true", help="build and check the packages only")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the packages go")
    arguments = parser.parse_args()
    if arguments.check == bool(arguments.version):
        parser.error("give a version, or --check")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if arguments.version and (problems := [*unready(arguments.version, project["version"])]):
        print(*problems, sep="\n")
        return 1
    hatchling = [sys.executable, "-m", "hatchling", "build", "-d", str(arguments.dist)]
    subprocess.run(hatchling, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    stem = arguments.dist / f"{project['name']}-{project['version']}"
    packages = [Path(f"{stem}-py3-none-any.whl"), Path(f"{stem}.tar.gz")]
    problems = [*wheel_problems(packages[0], project), *sdist_problems(packages[1])]
    print(*problems or [f"{path.name}: {path.stat().st_size:,} bytes" for path in packages], sep="\n")
    if arguments.version and not problems:
        print(
            f"next: git tag -a v{arguments.version} -m 'fiberstore {arguments.version}', and upload {stem}*"
        )
    return 1 if problems else 0


def unready(version: str, stated: str) -> Iterator[str]:
    """Yield the reasons for which this version cannot be released from this tree."""
    if version != stated:
        yield f"pyproject.toml has version {stated}, not {version}: change it"
    if f"version: {version}" not in (ROOT / "CITATION.cff").read_text().splitlines():
        yield f"CITATION.cff has not version {version}: change it"
    if not re.search(
        rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    ):
        yield f"CHANGELOG.md has no section '## {version} - YYYY-MM-DD': name 'Unreleased' so"
    if _git("status", "--porcelain"):
        yield "the tree has changes: commit them"
    if _git("tag", "--list", f"v{version}"):
        yield f"there is a tag v{version} already: a version is released once"


def _git(*arguments: str) -> list[str]:
    printed = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return printed.stdout.splitlines()


def wheel_problems(path: Path, project: dict[str, object]) -> Iterator[str]:
    """Yield the faults of a wheel: its files, metadata and size."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        (place,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(wheel.read(place))
    yield from (f"{path.name} has no {name}" for name in WHEEL_NEEDS if name not in names)
    yield from (f"{path.name} has {name}" for name in names if not WHEEL_HAS.fullmatch(name))
    yield from metadata_problems(path.name, metadata, project)
    yield from size_problems(path)


def metadata_problems(name: str, metadata: Message, project: dict[str, object]) -> Iterator[str]:
    """Yield the fields that an index or pip would show wrong."""
    expected = {
        "Name": project["name"],
        "Version": project["version"],
        "Requires-Python": project["requires-python"],
        "License-Expression": project["license"],
        "Description-Content-Type": "text/markdown",
    }
    for field, value in expected.items():
        if metadata[field] != value:
            yield f"{name}: {field} is {metadata[field]!r}, not {value!r}"
    if metadata.get_payload() != (ROOT / "README.md").read_text():
        yield f"{name}: its description is not README.md"


def sdist_problems(path: Path) -> Iterator[str]:
    """Yield the faults of an sdist, which has all files of the repository, and may lack the dotted ones."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = _git("ls-files", "--cached", "--others", "--exclude-standard")
    expected = {name for name in files if not name.startswith(DOTTED)}
    yield from (f"{path.name} has no {name}" for name in sorted(expected - names))
    yield from (f"{path.name} has {name}" for name in sorted(names - {*files, "PKG-INFO"}))
    yield from size_problems(path)


def size_problems(path: Path) -> Iterator[str]:
    """Yield a fault if a package has grown too large."""
    size, most = path.stat().st_size, MOST_BYTES[path.suffix]
    if size > most:
        yield f"{path.name} has {size:,} bytes, more than {most:,}: see what has come in"


if __name__ == "__main__":
    sys.exit(main())
