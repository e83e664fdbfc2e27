"""Builds the site of these pages in `build/site`: strictly, offline, and closed to the outside.

    python docs/build.py

The pages link to files of the repository, which a reader of the repository can open. On the site
each such file gets a page of its own under `source/`: a module its docstrings and code, any other
file its text. The commands' page is filled from the commands themselves.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
STAGE = ROOT / "build" / "docs"
SITE = ROOT / "build" / "site"
PACKAGES = ("agents", "graphs", "finetune", "reflux")
COMMANDS = "<!-- the commands -->"
"""Stands where the commands' help is put in."""
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".md": "markdown", ".toml": "toml"}
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")
FENCE = re.compile(r"^(```.*?^```)$", re.DOTALL | re.MULTILINE)
LOADED = re.compile(
    r"""<(?!a\b)[a-z]+\b[^>]*\b(?:src|href|srcset|poster|data|action)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|(?:url\(|@import\s+)["']?((?:https?:)?//[^"')\s]+)"""
)
"""Addresses of other machines that a browser would load of itself, in a page or a style sheet."""


def main() -> int:
    """Build the site, and refuse one that would call out."""
    stage()
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=ROOT
    )
    if done.returncode:
        return done.returncode
    called = sorted(set(outside(SITE)))
    for page, address in called:
        print(f"{page} loads {address}", file=sys.stderr)
    print(f"{SITE.relative_to(ROOT)}/index.html: {len(list(SITE.rglob('*.html')))} pages")
    return 1 if called else 0


def stage() -> None:
    """Lay out what the site is built from: the pages, and the files that they link to."""
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(DOCS, STAGE, ignore=shutil.ignore_patterns("*.py", "theme", "__pycache__"))
    linked: set[Path] = set(modules())
    for page in sorted(STAGE.rglob("*.md")):
        text = page.read_text().replace(
            COMMANDS, commands() if COMMANDS in page.read_text() else ""
        )
        page.write_text(relinked(text, page, linked))
    for file in sorted(linked):
        write(staged(file), source_page(file))
    write(STAGE / "source" / "index.md", index_of(linked))


def relinked(text: str, page: Path, linked: set[Path]) -> str:
    """The page's text with links to files of the repository led to their pages, which are noted.

    Raises:
        SystemExit: a link leads to nothing.
    """
    written = DOCS / page.relative_to(STAGE)

    def target(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(written.parent / link[1]))
        if path.is_relative_to(DOCS):
            return link[1]
        if not path.is_file():
            raise SystemExit(f"{written.relative_to(ROOT)} links to {link[1]}, which is no file")
        linked.add(path.relative_to(ROOT))
        return os.path.relpath(staged(path.relative_to(ROOT)), page.parent)

    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(target, part) for part in parts)


def staged(file: Path) -> Path:
    """The page of a file of the repository."""
    return STAGE / "source" / f"{file}.md"


def modules() -> Iterator[Path]:
    """The modules of the four packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT)


def source_page(file: Path) -> str:
    """A module's docstrings and code, or another file's text."""
    if file.suffix == ".py" and file.parts[0] in PACKAGES:
        parts = file.with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        module = module if module.startswith("reflux") else f"reflux.{module}"
        return f"# {file}\n\n::: {module}\n"
    text = (ROOT / file).read_text()
    fence = "`" * (3 + max((len(run) for run in re.findall("`{3,}", text)), default=0))
    return f"# {file}\n\n{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def index_of(files: set[Path]) -> str:
    """All these pages, a line each with the first sentence of a module's docstring."""
    lines = ["# Source files", ""]
    for folder in dict.fromkeys(file.parent for file in sorted(files)):
        lines += ["", f"## {folder}" if folder != Path() else "## The repository", ""]
        lines += [
            f"- [`{file.name}`]({file}.md) {claim(file)}"
            for file in sorted(files)
            if file.parent == folder
        ]
    return "\n".join(lines) + "\n"


def claim(file: Path) -> str:
    """The first line of a module's docstring."""
    if file.suffix != ".py":
        return ""
    first = (ROOT / file).read_text().partition("\n")[0]
    return first.strip('"') if first.startswith('"""') else ""


def commands() -> str:
    """What every command says of itself."""
    from typer.main import get_command

    from reflux.cli.main import app

    os.environ["COLUMNS"] = "90"
    parts: list[str] = []
    waiting = [(["reflux"], get_command(app))]
    while waiting:
        words, command = waiting.pop(0)
        inner = getattr(command, "commands", {})
        waiting = [([*words, name], below) for name, below in inner.items()] + waiting
        with command.make_context(" ".join(words), ["--help"], resilient_parsing=True) as context:
            told = command.get_help(context)
        parts.append(f"## {' '.join(words)}\n\n```text\n{told.rstrip()}\n```\n")
    return "\n".join(parts)


def outside(site: Path) -> Iterator[tuple[str, str]]:
    """(file, address) of what a built page or style sheet would load from another machine."""
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css"), *site.rglob("*.svg")]):
        for found in LOADED.finditer(path.read_text()):
            yield str(path.relative_to(site)), found[1] or found[2]


def write(path: Path, text: str) -> None:
    """Write a file, and the folders it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
