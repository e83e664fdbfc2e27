"""What a training would learn from, as tables in the terminal and as a page that stands alone."""

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.text import Text

from reflux.finetune.data.encoding import lengths_in_words
from reflux.finetune.data.report import DataReport
from reflux.report.terminal import counted, cut_text, plain, printable, table_of
from reflux.report.tree_page import page_template

MAX_CHARS = 6_000
"""Characters of one text on the page."""
PIECE = 400
"""Characters of a piece of an example in the terminal."""
SHOWN = 20
"""Lines of a table in the terminal."""


def data_page(report: DataReport) -> str:
    """The page: one file, no script, no outside address."""
    return page_template("data.html.jinja", MAX_CHARS).render(
        report=report, lines=list(_lines(report))
    )


def data_view(report: DataReport, console: Console) -> RenderableType:
    """The tables, and one example of each node; signs mark what counts where a console has no
    colors."""
    colored = console.color_system is not None
    parts: list[RenderableType] = [plain(line) for line in _lines(report)]
    rows = [(source, node, outcome, f"{n:,}") for source, node, outcome, n in report.groups]
    heads = ("source", "node", "outcome", "rows")
    parts.append(table_of(heads, rows[:SHOWN], title="Rows", right=("rows",)))
    if report.left_out:
        cells = [
            (reason, f"{n:,}", _example(report, reason)) for reason, n in report.left_out.items()
        ]
        parts.append(
            table_of(
                ("left out", "calls or rows", "such as"), cells[:SHOWN], title="Left out",
                wraps=("such as",), right=("calls or rows",),
            )
        )  # fmt: skip
    seen: set[str] = set()
    for example in report.examples:
        if example.node in seen:
            continue
        seen.add(example.node)
        where = "in green" if colored else "between » and «"
        text = Text(f"\n{example.node}, {example.tokens} tokens; {where} what counts\n", "bold")
        for piece, counts in example.pieces:
            shown = cut_text(printable(piece, "\n"), PIECE)
            shown = f"»{shown}«" if counts and not colored else shown
            text.append(shown, style="not bold green" if counts else "not bold dim")
        parts.append(text)
    return Group(*parts)


def _example(report: DataReport, reason: str) -> str:
    examples = report.left_out_examples.get(reason) or [{"text": ""}]
    return cut_text(printable(" ".join(examples[0]["text"].split())), 60)


def _lines(report: DataReport) -> Iterator[str]:
    """The report in sentences."""
    before = f" of {report.read:,}" if report.read > report.rows else ""
    tools = f", {report.with_tools:,} with tools" if report.with_tools else ""
    yield f"{report.rows:,} rows{before}{tools}, for {report.base}"
    if tokens := report.tokens:
        sample = f" (of {report.measured:,} rows)" if report.measured < report.rows else ""
        yield (
            f"{counted(report.sequences, 'sequence')}{sample} of {lengths_in_words(tokens)}; "
            f"the loss counts {tokens['counted']:,} of {tokens['sum']:,}, in "
            f"{counted(report.replies, 'reply')}"
        )
    if report.too_long:
        yield (
            f"{report.too_long:,} are longer than the {report.context:,} tokens that the base "
            "takes: they lose their end"
        )
    if report.redacted:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in report.redacted.items())
        yield f"replaced by placeholders: {kinds}"
    if report.escaped:
        yield f"{report.escaped:,} rows held markers of the base in their texts: escaped"
