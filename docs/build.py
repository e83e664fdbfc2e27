"""Builds the site of these pages in `build/site`: strict, offline, and without outside addresses.

    python docs/build.py           # build the site
    python docs/build.py --tree    # rewrite the source tree in docs/architecture.md

The pages link to files of the repository. On the site, each linked file gets a page under
`source/`: a module shows its docstrings and code, any other file its text. The page of commands is
filled from the commands' own help.
"""

import ast
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
"""Marks where the commands' help is inserted."""
ARCHITECTURE = DOCS / "architecture.md"
TREE = "<!-- the source tree -->"
"""Stands before and after the generated source tree in `ARCHITECTURE`."""
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".md": "markdown", ".toml": "toml"}
PUBLIC = re.compile(r"^::: reflux\.(\w+)$", re.MULTILINE)
"""A public name in the Python reference."""
REFERENCE = """::: {home}.{name}
    options:
      heading: reflux.{name}
      heading_level: 3
      show_root_heading: true
      show_root_toc_entry: true
      toc_label: {name}
"""
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")
FENCE = re.compile(r"^(```.*?^```)$", re.DOTALL | re.MULTILINE)
LOADED = re.compile(
    r"""<(?!a\b)[a-z]+\b[^>]*\b(?:src|href|srcset|poster|data|action)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|(?:url\(|@import\s+)["']?((?:https?:)?//[^"')\s]+)"""
)
"""Addresses on other machines that a browser would load, in a page or a style sheet."""


def main() -> int:
    """Build the site; fail if a page would load anything from another machine."""
    if "--tree" in sys.argv:
        ARCHITECTURE.write_text(with_tree(ARCHITECTURE.read_text()))
        return 0
    stage()
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=ROOT
    )
    if done.returncode:
        return done.returncode
    loads = sorted(set(outside(SITE)))
    for page, address in loads:
        print(f"{page} loads {address}", file=sys.stderr)
    print(f"{SITE.relative_to(ROOT)}/index.html: {len(list(SITE.rglob('*.html')))} pages")
    return 1 if loads else 0


def stage() -> None:
    """Stage what the site is built from: the pages, and the files that they link to."""
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(DOCS, STAGE, ignore=shutil.ignore_patterns("*.py", "theme", "__pycache__"))
    linked: set[Path] = set(modules())
    for page in sorted(STAGE.rglob("*.md")):
        text = page.read_text()
        if COMMANDS in text:
            text = text.replace(COMMANDS, commands())
        page.write_text(relinked(referenced(text), page, linked))
    for file in sorted(linked):
        write(staged(file), source_page(file))
    write(STAGE / "source" / "index.md", index_of(linked))


def referenced(text: str) -> str:
    """Replace each public name by a reference to the module that defines it."""
    homes = public_homes() if PUBLIC.search(text) else {}
    return PUBLIC.sub(lambda name: REFERENCE.format(home=homes[name[1]], name=name[1]), text)


def public_homes() -> dict[str, str]:
    """The module that each public name of `reflux` comes from."""
    stub = ROOT / "reflux" / "__init__.pyi"
    tree = ast.parse((stub if stub.is_file() else stub.with_suffix(".py")).read_text())
    return {
        alias.name: f"reflux.{node.module}" if node.level else str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def relinked(text: str, page: Path, linked: set[Path]) -> str:
    """Point links to repository files at those files' pages, and add the files to `linked`.

    Raises:
        SystemExit: A link target does not exist.
    """
    written = DOCS / page.relative_to(STAGE)

    def target(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(written.parent / link[1]))
        if path.is_relative_to(DOCS):
            return link[1]
        if not path.is_file():
            raise SystemExit(f"{written.relative_to(ROOT)} links to {link[1]}, which is not a file")
        linked.add(path.relative_to(ROOT))
        return os.path.relpath(staged(path.relative_to(ROOT)), page.parent)

    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(target, part) for part in parts)


def staged(file: Path) -> Path:
    """The page of a repository file."""
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
    """List all source pages, each with the first sentence of its module's docstring."""
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
    """The first sentence of a module's docstring; empty for other files."""
    if file.suffix != ".py":
        return ""
    docstring = ast.get_docstring(ast.parse((ROOT / file).read_text())) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph)[0]


def with_tree(page: str) -> str:
    """The architecture page with its source tree generated from the modules' docstrings."""
    before, _, rest = page.partition(TREE)
    _, _, after = rest.partition(TREE)
    return f"{before}{TREE}\n{source_tree()}\n{TREE}{after}"


def source_tree() -> str:
    """Each folder of the four packages with its claim, and each module in it on one line."""
    lines: list[str] = []
    files = list(modules())
    for folder in dict.fromkeys(file.parent for file in files):
        lines += ["", f"**`{folder}/`** {claim(folder / '__init__.py')}", ""]
        lines += [
            f"- [`{file.name}`](../{file}) {claim(file)}"
            for file in files
            if file.parent == folder and file.name != "__init__.py"
        ]
    return "\n".join(lines) + "\n"


def commands() -> str:
    """The help text of every command."""
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
    """Yield (file, address) for each load from another machine in a page or style sheet."""
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css"), *site.rglob("*.svg")]):
        for load in LOADED.finditer(path.read_text()):
            yield str(path.relative_to(site)), load[1] or load[2]


def write(path: Path, text: str) -> None:
    """Write a file; create its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
