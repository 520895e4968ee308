"""A table in its three forms."""

import json
import re
import shutil
import subprocess

import pytest

from eca_jax.analysis.table import Table

TABLE = Table(
    "Costs & units",
    ("model", "parameters (2^20)", "command"),
    (
        ("eca_resnet50", "24.37", "`train.py --config eca_resnet50`"),
        ("a|b", "1,024.50", "-"),
        ("none", "-", ""),
    ),
    ("50% of {these} ~ 1 \\ 2.",),
)


def test_markdown_is_a_table_whose_numbers_are_set_to_the_right():
    assert TABLE.to_markdown() == (
        "Costs & units\n"
        "\n"
        "| model        | parameters (2^20) | command                          |\n"
        "| ------------ | ----------------: | -------------------------------- |\n"
        "| eca_resnet50 |             24.37 | `train.py --config eca_resnet50` |\n"
        "| a\\|b         |          1,024.50 | -                                |\n"
        "| none         |                 - |                                  |\n"
        "\n"
        "- 50% of {these} ~ 1 \\ 2.\n"
    )


def test_latex_is_balanced_and_escaped():
    latex = TABLE.to_latex()
    assert r"\caption{Costs \& units}" in latex
    assert r"eca\_resnet50 & 24.37 & \texttt{train.py -{}-config eca\_resnet50} \\" in latex
    assert r"a\textbar{}b & 1,024.50 & -- \\" in latex
    assert r"none & -- &  \\" in latex
    assert r"\begin{tabular}{lrl}" in latex
    assert "\n" r" & parameters &  \\" "\n" r"model & ($2^{20}$) & command \\" "\n" in latex
    assert r"50\% of \{these\} \textasciitilde{} 1 \textbackslash{} 2." in latex
    opened = re.findall(r"\\begin\{([\w*]+)\}", latex)
    assert re.findall(r"\\end\{([\w*]+)\}", latex) == opened[::-1]
    plain = re.sub(r"\\[{}]", "", latex)
    assert plain.count("{") == plain.count("}")


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("2 C^2 / r, 4.7e-4 x 10^9", r"2 C$^{2}$ / r, 4.7e-4 x $10^{9}$"),
        ("x ^ y, a_b^c", r"x \textasciicircum{} y, a\_b\textasciicircum{}c"),
        ("SE-Var1 with --config, ---", "SE-Var1 with -{}-config, -{}-{}-"),
        ("""the authors' 'first' ("second") run's""", "the authors' `first' (``second'') run's"),
        ("""see `--name 'a^2' "b"`""", r"see \texttt{-{}-name \textquotesingle{}a\textasciicircum{}2"),
    ],
)
def test_text_in_latex(text, latex):
    assert latex in Table("t", ("a",), ((text,),)).to_latex()


def test_latex_has_remarks_as_numbered_notes_and_leaves_columns_out():
    rows = (("A-1", "odd, 50%", "1", "`run a`"), ("B", "", "2", "`run b`"), ("C", "odd, 50%", "3", "-"))
    rows = (*rows, ("D", "new", "4", "-"))
    table = Table("Runs, 1: all", ("name", "why", "n", "command"), rows, ("End.",), ("why", "gone"), ("command",))
    latex = table.to_latex()
    body = latex.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    assert body == "A-1$^{1}$ & 1 \\\\\nB & 2 \\\\\nC$^{1}$ & 3 \\\\\nD$^{2}$ & 4 \\\\\n"
    below = latex.partition("\\raggedright\n")[2]
    assert below == "$^{1}$ odd, 50\\%\\par\n$^{2}$ new\\par\nEnd.\\par\n}\n\\end{table*}\n"
    assert "\\label{tab:runs-1}\n\\begin{tabular}{lr}\n" in latex
    plain = Table("Runs, 1: all", table.header, rows, ("End.",))
    assert (table.to_markdown(), table.to_json()) == (plain.to_markdown(), plain.to_json())


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path):
    """With the packages that its first line names."""
    packages, _, table = TABLE.to_latex().removeprefix("% ").partition("\n")
    page = f"\\documentclass{{article}}\n{packages}\n\\begin{{document}}\n{table}\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(page)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout


def test_json_has_numbers_by_the_names_of_their_columns():
    assert json.loads(TABLE.to_json()) == {
        "title": "Costs & units",
        "rows": [
            {"model": "eca_resnet50", "parameters (2^20)": 24.37, "command": "`train.py --config eca_resnet50`"},
            {"model": "a|b", "parameters (2^20)": 1024.5, "command": None},
            {"model": "none", "parameters (2^20)": None, "command": None},
        ],
        "notes": ["50% of {these} ~ 1 \\ 2."],
    }


@pytest.mark.parametrize(
    ("cell", "value"), [("-3", -3), ("+1.5", 1.5), ("4.7e-4", 4.7e-4), ("007", "007"), ("nan", "nan"), ("3x3", "3x3")]
)
def test_what_is_a_number_in_json(cell, value):
    assert json.loads(Table("", ("a",), ((cell,),)).to_json())["rows"] == [{"a": value}]


def test_a_column_with_other_cells_has_text_in_json():
    rows = json.loads(Table("", ("a", "b"), (("0", "1"), ("C^2", "-"))).to_json())["rows"]
    assert rows == [{"a": "0", "b": 1}, {"a": "C^2", "b": None}]


def test_a_table_without_rows():
    table = Table("Nothing", ("a", "b"), ())
    assert table.to_markdown() == "Nothing\n\n| a   | b   |\n| --- | --- |\n"
    assert r"\begin{tabular}{ll}" in table.to_latex()
    assert json.loads(table.to_json())["rows"] == []


def test_rows_as_wide_as_the_header():
    with pytest.raises(ValueError, match="2 columns, but 1 cells"):
        Table("t", ("a", "b"), (("1",),))
