"""Tables as Markdown, LaTeX and CSV, means that ignore missing values, and lists of names.

Names of classes, files and runs may contain anything. A cell shows its text, which never acts as markup, a command or a formula.
"""

import csv
import io
import re
import statistics
from collections.abc import Iterable, Sequence

from sda.system.console import printable

NAMED = 12  # most names in a sentence
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": r"\textasciigrave{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
    **{"±": r"$\pm$", "–": "--", "×": r"$\times$"},
}


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: bool = False) -> str:
    """Return a Markdown table; with `numbers`, all columns but the first are right-aligned."""
    lines = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    cells = [[markdown_text(str(cell)) for cell in line] for line in (head, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [cells[0], lines, *cells[1:]])


def markdown_text(text: str) -> str:
    """Return a text as Markdown that shows it, on one line."""
    return re.sub(r"[\\`*<>|~$]|\](?=\()|(?<!\w)_|_(?!\w)|&(?=#|\w+;)", r"\\\g<0>", printable(text))


def latex(text: str) -> str:
    """Return a text as LaTeX that shows it. A bracket or an asterisk at its start must not become an argument of the line break
    before it."""
    text = "".join(_LATEX.get(character, character) for character in printable(text))
    return f"{{{text[0]}}}{text[1:]}" if text[:1] in ("[", "*") else text


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV. Texts that a spreadsheet would take for a formula get an apostrophe; numbers stay numbers."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_csv(cell) for cell in row] for row in rows)
    return out.getvalue()


def _csv(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    return f"'{text}" if re.match(r"\s*[=+\-@＝＋－＠]", text) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text) is not None


def mean_of_present(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None (the IoU of an absent class is None), or None if there are none."""
    present = [value for value in values if value is not None]
    return statistics.mean(present) if present else None


def named(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    return ", ".join(names) if len(names) <= NAMED else f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
