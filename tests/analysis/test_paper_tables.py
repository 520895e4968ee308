"""The paper's tables: what is printed, what we compute, and that the two agree where nothing says why not."""

import dataclasses
import json
import shlex

import pytest

from eca_jax import cli
from eca_jax.analysis import paper_tables
from eca_jax.analysis.complexity import abstract_model, complexity
from eca_jax.analysis.paper import GIBI, GIGA, MEBI, MEGA, POSTER, TABLE_2, TABLE_3, Row
from eca_jax.analysis.paper_flops import paper_flops
from eca_jax.analysis.paper_tables import Cost, command, computed, cost, networks, parameters, train_command
from eca_jax.models.registry import resolve_attention
from eca_jax.nn.attention import AttentionConfig
from eca_jax.overrides import overridden

DEEP = ("resnet101", "resnet152")
OURS = [("table 3", row) for row in TABLE_3 if row.attention] + [("poster", row) for row in POSTER]


def named(rule: str, row: Row):
    marks = [pytest.mark.slow] if row.backbone in DEEP else []
    return pytest.param(rule, row, marks=marks, id=f"{row.method}-{row.backbone}")


@pytest.fixture(scope="module", autouse=True)
def costs():
    """Each network is counted once."""
    known = {}

    def once(row: Row, rule: str) -> Cost:
        if row not in known:
            known[row] = cost(row, rule)
        return known[row]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_tables, "cost", once)
        yield once


@pytest.mark.parametrize(("rule", "row"), [named(*it) for it in OURS])
def test_printed_digits_are_met(rule, row, costs):
    """Parameters of every row that has a module here; FLOPs of every plain, SE and ECA row but one."""
    found = costs(row, rule)
    assert computed(found.parameters, row.parameters_unit, row.parameters) == row.parameters
    if row.method in ("CBAM", "GCNet"):
        assert found.flops is None
    elif (row.method, row.backbone) == ("SENet", "mobilenet_v2"):
        assert (row.flops, computed(found.flops, row.flops_unit, row.flops)) == ("320.1", "320.0")
        assert row.difference.startswith("FLOPs: 320.01")
    else:
        assert computed(found.flops, row.flops_unit, row.flops) == row.flops


def test_what_is_printed():
    """A few cells typed again from the paper and the poster."""
    rows = {(row.method, row.backbone): row for row in (*TABLE_3, *POSTER)}
    assert len(rows) == len(TABLE_3) + len(POSTER) == 19 + 7

    def cells(*key: str) -> tuple:
        row = rows[key]
        fps = row.training_fps, row.inference_fps
        return row.parameters, row.flops, *fps, row.top1, row.top5, row.parameters_unit, row.flops_unit

    assert cells("ECA-Net", "resnet50") == ("24.37", "3.86", "785", "1805", "77.48", "93.68", MEBI, GIBI)
    assert cells("CBAM", "resnet101") == ("47.01", "7.35", "270", "635", "78.49", "94.31", MEBI, GIBI)
    assert cells("A2-Nets", "resnet50") == ("33.00", "6.50", "-", "-", "77.00", "93.50", MEGA, GIGA)
    assert cells("SENet", "resnet152") == ("63.68", "10.85", "268", "761", "78.43", "94.27", MEBI, GIBI)
    assert cells("ECA-Net", "mobilenet_v2") == ("3.34", "319.9", "676", "2010", "72.56", "90.81", MEBI, MEBI)
    assert cells("ECA-Net", "resnet34") == ("20.788", "3.428", "-", "-", "74.21", "91.83", MEBI, GIBI)
    gates = {gate.method: (gate.parameters, gate.top1, gate.top5) for gate in TABLE_2}
    assert len(gates) == 10
    assert gates["SE-GC2"] == ("16 C", "76.98", "93.31")
    assert gates["ECA"] == ("k = 3", "77.43", "93.65")
    assert gates["vanilla"] == ("0", "75.20", "92.25")


def test_rows_without_a_module_say_so():
    rows = [row for row in TABLE_3 if row.attention is None]
    assert {row.method for row in rows} == {"A2-Nets", "GSoP-Net1", "AA-Net"}
    for row in rows:
        assert row.difference.endswith("no module here")
        assert cost(row, "table 3") == Cost()
        assert command(row) == "-"


# k times C, C^2, ... added up over the 16 modules: C = 256 x3, 512 x4, 1024 x6, 2048 x3.
ADDED = {
    "vanilla": 0,
    "SE": 2_514_944,
    "SE-Var1": 0,
    "SE-Var2": 15_104,
    "SE-Var3": 20_119_552,
    "SE-GC1": 1_257_472,
    "SE-GC2": 241_664,
    "SE-GC3": 120_832,
    "ECA-NS": 45_312,
    "ECA": 48,
}


@pytest.mark.parametrize("gates", [TABLE_2[-2:], pytest.param(TABLE_2, marks=pytest.mark.slow)], ids=len)
def test_table_2_has_what_the_modules_add(gates, capsys, monkeypatch):
    monkeypatch.setattr(paper_tables, "TABLE_2", gates)
    assert cli.main(["table", "2", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    added = {row["method"]: row["weights of all modules, computed"] for row in rows}
    assert added == {gate.method: ADDED[gate.method] for gate in gates}


def test_a_network_of_a_table_is_counted_once(monkeypatch):
    """The deep ones take seconds."""
    counted = []
    monkeypatch.setattr(paper_tables, "cost", lambda row, rule: counted.append(row) or Cost())
    networks("t", POSTER, "poster", ())
    assert counted == list(POSTER)


def test_a_table_of_the_poster(capsys, tmp_path):
    """As the command prints it and writes it: units in every column, no column without content."""
    assert cli.main(["table", "poster"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "method",
        "backbone",
        "units of parameters, FLOPs",
        "parameters, printed",
        "parameters, computed",
        "FLOPs, printed",
        "FLOPs, computed",
        "top-1 (%)",
        "top-5 (%)",
        "remark",
        "command",
    ]
    (line,) = (line for line in lines if line.startswith("| SENet") and "resnet34" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:9] == ["SENet", "resnet34", "2^20, 2^30", "20.938", "20.938", "3.428", "3.428", "73.87", "91.65"]
    assert cells[10] == "`eca-jax train --config se_resnet34`"
    path = tmp_path / "poster.tex"
    assert cli.main(["table", "poster", "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"table poster -> {path}\n"
    latex = path.read_text()
    rows = latex.partition(r"\midrule")[2]
    assert rows.count(r" \\") == len(POSTER)
    assert r"ECA-Net$^{1}$ & resnet18 & $2^{20}$, $2^{30}$ & 11.148 & 11.148 & 1.700 & 1.700" in rows
    assert "$^{1}$ top-1 and top-5: the README has" in rows
    assert "pth.tar" not in latex


@pytest.mark.slow
@pytest.mark.parametrize("form", ["markdown", "latex", "json"])
def test_table_3(form, capsys):
    assert cli.main(["table", "3", "--format", form]) == 0
    printed = capsys.readouterr().out
    assert printed.count("eca-jax evaluate --weights") == (0 if form == "latex" else 4)
    if form == "json":
        rows = json.loads(printed)["rows"]
        assert len(rows) == 19
        differ = [row for row in rows if row["FLOPs, computed"] not in (None, row["FLOPs, printed"])]
        assert [(row["method"], row["backbone"], row["FLOPs, computed"]) for row in differ] == [
            ("SENet", "mobilenet_v2", 320.0)
        ]
        assert all(row["remark"] for row in rows if row["FLOPs, computed"] is None)


def test_a_difference_without_a_remark_would_be_seen(costs):
    """The digits of the table are computed: with another printed number, both stand there."""
    wrong = dataclasses.replace(POSTER[0], parameters="11.15", flops="1.6")
    table = networks("t", (wrong,), "poster", ())
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert (cells["parameters, printed"], cells["parameters, computed"]) == ("11.15", "11.15")
    assert (cells["FLOPs, printed"], cells["FLOPs, computed"]) == ("1.6", "1.7")


def test_the_counts_that_remarks_and_notes_give():
    """Numbers in the sentences beside the tables."""
    with_biases = parameters("resnet50", AttentionConfig("cbam"))
    cbam = next(row for row in TABLE_3 if row.method == "CBAM")
    assert f"{with_biases / 2**20:.2f} with them" in cbam.difference
    plain, eca = (complexity(abstract_model(name)) for name in ("resnet50", "eca_resnet50"))
    (note,) = (note for note in paper_tables.TABLE_3_NOTES if "4.7e-4" in note)
    convolutions = eca.multiply_adds - plain.multiply_adds
    pooled = paper_flops(eca) - paper_flops(plain)
    assert f"{convolutions:,} multiply-adds ({convolutions / 2**30:.1e} x".replace("e-0", "e-") in note
    assert f"{pooled:,} ({pooled / 2**30:.1e} x".replace("e-0", "e-") in note


def test_train_commands_make_the_row_s_network():
    """Each parses, is of the row's network, and two networks do not share a directory."""
    workdirs = {}
    attentions = {("resnet50", gate.attention) for gate in TABLE_2} | {(row.backbone, row.attention) for _, row in OURS}
    for backbone, attention in attentions:
        line = train_command(backbone, attention)
        program, what, *args = shlex.split(line.strip("`"))
        assert (program, what, args[0]) == ("eca-jax", "train", "--config")
        config = overridden(args[1], args[2:], prog="", description="")
        assert config.data.name == "imagenet2012"
        assert config.model.name.endswith(backbone)
        assert resolve_attention(config.model.name, config.model.attention) == attention.resolved()
        assert workdirs.setdefault(config.workdir, line) == line
    assert len(workdirs) == len(attentions)


def test_evaluate_commands_parse():
    """With our parser; the network that they expect is the row's."""
    parser, _ = cli._command_parser()
    released = [row for _, row in OURS if row.weights]
    assert len(released) == 6
    for row in released:
        program, *args = shlex.split(command(row).strip("`"))
        parsed = parser.parse_args(args)
        assert (program, parsed.command) == ("eca-jax", "evaluate")
        assert (parsed.weights, parsed.model, parsed.data) == (row.weights, f"eca_{row.backbone}", "imagenet2012")


def test_a_file_of_another_form_is_refused_before_anything_is_counted(capsys, tmp_path):
    assert cli.main(["table", "poster", "--output", str(tmp_path / "poster.csv")]) == 2
    assert "expected a file that ends in .md, .tex, .json" in capsys.readouterr().err
    assert cli.main(["table", "poster", "--output", str(tmp_path / "no" / "poster.md")]) == 2
    assert "there is no directory" in capsys.readouterr().err
