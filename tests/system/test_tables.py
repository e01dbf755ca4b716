r"""Tables in which names of others cannot act: as markup, as a formula, as a command of LaTeX or of the terminal."""

import csv
import io
import re
import shutil
import subprocess

import pytest

from sda.system import tables
from sda.system.console import printable

ESCAPES = "\x1b[2J\x1b]0;title\x07 \r\n \x9b31m \u202eevil\u2066 \u2028 \x00 \x7f \udcff"
NASTY = [
    r"\input{/etc/passwd}", r"a~b^c_d", r"100 % & #1 $x$ {y} <z> `q` |p| \"w\"", "^^M", "[3pt] x", "*", "a | b", "`code`",
    "<script>", "[link](http://x)", "**bold** _it_ snake_case ~~gone~~", "&amp; & co", "line\nbreak",
    "=1+1", "+1", "-x", "@SUM(A1)",
    " =1", "＝1", "\t=1", "-5", "1e-3", "–", ESCAPES,
]  # fmt: skip


def test_nothing_acts_on_the_terminal():
    shown = printable(ESCAPES)
    assert shown.isprintable() and "\\x1b[2J" in shown and "\\u202e" in shown and "\\udcff" in shown and "\\n" in shown
    assert printable("straße 道路 ✓ 👩‍🚗 a\tb") == "straße 道路 ✓ 👩‍🚗 a\tb"
    for code in [
        *range(32),
        *range(127, 160),
        0x61C,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
        0xD800,
        0xDFFF,
    ]:
        assert printable(chr(code)).isprintable() or code == 9, hex(code)


def test_a_markdown_row_stays_a_row():
    lines = tables.markdown(["name", "x"], [[name, 1.5] for name in NASTY]).split("\n")
    assert len(lines) == 2 + len(NASTY)
    for line in lines:
        assert line.startswith("| ") and len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3, line
        plain = re.sub(r"\\.", "", line)
        assert not re.search(r"[`<>*~]|\]\(|&\w+;", plain), line
    assert "| snake\\_case" not in lines[-1] and any("snake_case" in line for line in lines)


def test_csv_has_no_formulas_and_keeps_numbers():
    rows = list(csv.reader(io.StringIO(tables.csv_text([[name, 1.5, -2, None] for name in NASTY]))))
    assert len(rows) == len(NASTY)
    for name, row in zip(NASTY, rows, strict=True):
        assert row[1:] == ["1.5", "-2", ""]
        assert row[0].lstrip()[:1] not in tuple("=+@＝") or row[0] == "+1", name
        assert row[0][:1] != "-" or row[0] == "-5"
    assert tables.csv_text([["a", "=x"]]) == "a,'=x\n"


def test_latex_shows_the_text():
    assert tables.latex(r"\input{x}") == r"\textbackslash{}input\{x\}"
    assert tables.latex("a~b^c_d&e%f#g$h") == r"a\textasciitilde{}b\textasciicircum{}c\_d\&e\%f\#g\$h"
    assert tables.latex("[3pt]") == "{[}3pt]" and tables.latex("*") == "{*}"
    assert tables.latex("1 ± 2 – ×") == r"1 $\pm$ 2 -- $\times$"
    assert all("\n" not in tables.latex(name) and "^^" not in tables.latex(name) for name in NASTY)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_compiles(tmp_path):
    body = " \\\\\n".join(tables.latex(name) for name in NASTY if name != ESCAPES and name.isascii())
    text = "\\documentclass{article}\\begin{document}\\begin{tabular}{l}\n" + body + "\n\\end{tabular}\\end{document}"
    (tmp_path / "a.tex").write_text(text)
    subprocess.run(["pdflatex", "-halt-on-error", "a.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_long_lists_of_names_are_cut():
    assert tables.named(["a", "b"]) == "a, b"
    assert tables.named([str(number) for number in range(30)]).endswith("10, 11 and 18 more")
