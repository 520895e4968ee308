"""The commands: one line for what the user can mend, and the exit status that says it."""

import csv
import json
import os
import pathlib
import re

import pytest

import eca_jax
from eca_jax import cli
from tests.commands import TINY
from tests.datasets import prepare_like

SMALL = [*TINY, "--epochs", "2"]


@pytest.fixture(scope="module", autouse=True)
def no_cluster():
    """JAX has started in this process, so it could not join one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eca_jax.sharding.initialize_cluster", lambda config: None)
        yield


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "configs/digit.py"], "there is no file configs/digit.py; there are: configs/digits.py"),
        (["--data.name", "digit"], "unknown data set 'digit'. Did you mean digits"),
        (["--model.name", "eca_resnet5"], "unknown model 'eca_resnet5'. Did you mean eca_resnet50"),
        (["--data.eval-split", "tset"], "unknown split 'tset' in 'tset'. Did you mean test"),
        (["--data.eval-split", "test[90:10%]"], "split 'test[90:10%]'"),
        (["--data.eval-split", "test[:0]"], "split 'test[:0]' has no examples"),
        (["--batch-size", "63"], "batch_size 63 is not a multiple of the 8 devices: use 56"),
        (["--workdir", "/dev/null/run"], "workdir: cannot make the directory /dev/null/run"),
    ],
)
def test_train_answers_bad_input_in_one_line(tmp_path, capsys, args, message):
    assert cli.train_main([*SMALL, "--workdir", str(tmp_path / "run"), *args]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert message in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--epoch 3", "unknown option --epoch. Did you mean --epochs?"),
        (
            "--epoch 3 --lr 1",
            "unknown option --epoch. Did you mean --epochs?; unknown option --lr. Did you mean --optim.lr?",
        ),
        ("--no-flip", "unknown option --no-flip. Did you mean --preprocess.no-flip?"),
        ("--kernel-sizes 3", "unknown option --kernel-sizes. Did you mean --model.attention.kernel-sizes?"),
        ("--plugn x", "unknown option --plugn. Did you mean --plugin?"),
        ("--bogus", "unknown option --bogus: see --help"),
        ("extra", "unexpected 'extra'"),
        ("--model.small-stem=maybe", "unexpected 'maybe': --model.small-stem takes no value"),
        ("--model.small-stem True", "unexpected 'True': --model.small-stem takes no value"),
        ("--epochs x", "--epochs: expected a whole number, got 'x'"),
        ("--batch_size 3.5", "--batch-size: expected a whole number, got '3.5'"),
        ("--optim.lr=x", "--optim.lr: expected a number, got 'x'"),
        ("--model.dropout abc", "--model.dropout: expected a number or None, got 'abc'"),
        ("--optim.drop-epochs 3 b", "--optim.drop-epochs: expected whole numbers, got '3' 'b'"),
        ("--epochs", "--epochs: expected a value, got none"),
        ("--preprocess.mean 0.5", "--preprocess.mean: expected 3 values, got '0.5'"),
        ("--preprocess.mean 0.5 a b", "--preprocess.mean: expected three numbers, got '0.5' 'a' 'b'"),
        ("--epochs --seed 1", "--epochs: expected a value, got none"),
        ("--config", "argument --config: expected one argument (train.py --help lists what there is)"),
        ("--batch-size 0", "batch_size: expected a positive number, got 0"),
        (
            "--model.attention.kernel-sizes -3",
            "attention.kernel_sizes: expected an odd size of at least 1, got -3",
        ),
        (
            "--model.attention.kernel-sizes 4",
            "attention.kernel_sizes: expected an odd size of at least 1, got 4: an even kernel has no centre channel; "
            "use 3 or 5",
        ),
    ],
)
def test_what_the_parser_cannot_take_is_one_line_too(monkeypatch, capsys, args, message):
    monkeypatch.setenv("COLUMNS", "50")  # a narrow terminal breaks no line
    assert cli.train_main([*SMALL, *args.split()]) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "the following arguments are required: COMMAND (eca-jax --help lists what there is)"),
        ("evalute", "argument COMMAND: invalid choice: 'evalute' (choose from "),
        ("--verison", "unknown option --verison. Did you mean --version?"),
        ("evaluate --runs x", "unknown option --runs. Did you mean --run?"),
        ("evaluate x", "unexpected 'x'"),
        (
            "predict --top 0 x",
            "argument --top: expected 1 or more, got '0' (eca-jax predict --help lists what there is)",
        ),
        ("predict --top ٣ x", "argument --top: expected 1 or more, got '٣'"),
        ("precompile --target v5e-8 --jsn", "unknown option --jsn. Did you mean --json?"),
        ("precompile --target v5e-8 --batch-size 3.5", "--batch-size: expected a whole number, got '3.5'"),
        ("precompile --target v5e-8 --config cifar", "--config: there is no configuration cifar; there are: cifar10"),
        ("convert a b --to orbax --config cifar", "--config: there is no configuration cifar; there are: cifar10"),
        (
            "convert a b.safetensors --config digits",
            "--config: is of the run that --to orbax writes, and b.safetensors is to be none; leave it out",
        ),
        ("train --epoch 3", "unknown option --epoch. Did you mean --epochs?"),
        ("train --config", "argument --config: expected one argument (eca-jax train --help lists what there is)"),
    ],
)
def test_the_other_commands_answer_alike(capsys, args, message):
    assert cli.main(args.split()) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("columns", ["1", "0", "-3", "wide"])
def test_help_in_a_terminal_of_no_width(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.train_main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) >= 38  # tyro leaves two columns
    assert os.environ["COLUMNS"] == columns


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ("evaluate --weights=", "--weights"),
        ("evaluate --run=", "--run"),
        ("evaluate --checkpoint=", "--checkpoint"),
        ("predict --run=runs/digits --plugin= x.png", "--plugin"),
        ("train --config=", "--config"),
    ],
)
def test_an_empty_value_is_not_taken_for_none(capsys, args, name):
    """`--run "$RUN"` where there is no such variable would else be answered with another run's scores."""
    assert cli.main(args.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: argument {name}: expected a value, got ''")
    assert cli.main(["predict", ""]) == 2
    assert capsys.readouterr().err.startswith("error: argument IMAGE: expected a value, got ''")


def test_precompile_looks_at_everything_before_it_says_that_it_compiles(capsys):
    """With the compiler the batch is refused, without it the target."""
    assert cli.main(["precompile", "--target", "v5e-8", "--batch-size", "7"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_any_directory_will_do(tmp_path, monkeypatch, capsys):
    """The default configuration, and the others by name, are found from everywhere; `eca-jax train` is train.py."""
    monkeypatch.chdir(tmp_path)
    for command, prog in ((cli.train_main, "train.py"), (lambda args: cli.main(["train", *args]), "eca-jax train")):
        for args, told in (([], "runs/digits"), (["--config", "eca_resnet50_a1"], "runs/eca_resnet50_a1")):
            with pytest.raises(SystemExit, match=r"^0$"):
                command([*args, "--help"])
            printed = capsys.readouterr().out
            assert f"usage: {prog}" in printed
            assert told in printed
        with pytest.raises(SystemExit, match=r"^0$"):
            command(["--version"])
        assert capsys.readouterr().out == f"eca_jax {eca_jax.__version__}\n"
    assert cli.main(["train", "--config", "configs/digits.py"]) == 2
    assert "--config: there is no file configs/digits.py; there are: digits\n" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["--help"])
    assert "train.py" in capsys.readouterr().out


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("cli") / "run"
    sizes = ["--model.attention.kernel-sizes", "3"]
    assert cli.train_main([*SMALL, *sizes, "--workdir", str(workdir)]) == 0
    assert json.loads((workdir / "config.json").read_text())["model"]["attention"]["kernel_sizes"] == 3
    return workdir


def test_evaluate_and_predict(run, tmp_path, capsys):
    from eca_jax.data.sources import open_source

    data, _ = open_source("digits", "test")[0]
    (tmp_path / "digit.png").write_bytes(data)
    (tmp_path / "text.png").write_text("not an image")
    assert cli.main(["evaluate", "--run", str(run)]) == 0
    assert "of 100), top-5" in capsys.readouterr().out
    assert cli.main(["evaluate", "--run", str(run), "--split", "test[:50]"]) == 0
    assert "step 10, split 'test[:50]': top-1" in capsys.readouterr().out
    for split, seen in (
        ("train", "320 of the 1437"),
        ("train[300:330]", "20 of the 30"),
        ("train[:9]", "all of the 9"),
    ):
        assert cli.main(["evaluate", "--run", str(run), "--split", split]) == 0
        assert f", split '{split}', not held out: {seen} are training images: top-1 " in capsys.readouterr().out
    prepare_like("mnist", tmp_path, {"test": 20})
    prepare_like("imagenet_v2", tmp_path, {"test": 3})
    other = ["evaluate", "--run", str(run), "--data-dir", str(tmp_path), "--data"]
    assert cli.main([*other, "mnist"]) == 0
    assert "step 10, data 'mnist': top-1" in capsys.readouterr().out
    assert cli.main([*other, "imagenet_v2"]) == 2
    assert "'imagenet_v2', split 'test', has other classes than the run" in capsys.readouterr().err
    assert cli.main([*other, str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(f"unknown data set '{tmp_path}'. Did you mean folder:{tmp_path}?\n")
    assert cli.main([*other, ""]) == 2
    assert "argument --data: expected a value, got ''" in capsys.readouterr().err
    assert cli.main(["predict", "--run", str(run), "--top", "3", str(tmp_path / "digit.png")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    for file, message in (
        ("nowhere.png", "there is no file"),
        ("text.png", "text.png as an image"),
    ):
        assert cli.main(["predict", "--run", str(run), str(tmp_path / file)]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


DIGITS = ("a.png", "c.png", "d.png", "b/0.png", "b/1.PNG")
"""In the order in which they are read."""


@pytest.fixture
def digits(tmp_path) -> pathlib.Path:
    """A directory of five images, a folder in it, and two files that are none."""
    from eca_jax.data.sources import open_source

    source, folder = open_source("digits", "test"), tmp_path / "digits"
    (folder / "b").mkdir(parents=True)
    for i, name in enumerate(DIGITS):
        (folder / name).write_bytes(source[i][0])
    (folder / "notes.txt").write_text("no image")
    (folder / ".a.png").write_text("no image")
    return folder


def percentages(out: str) -> list[tuple[str, list[tuple[float, str]]]]:
    """What `predict` prints -> [(file, [(share, class), ...])]."""
    found = []
    for line in out.splitlines():
        if match := re.fullmatch(r"   *([\d.]+)%  (.+)", line):
            found[-1][1].append((float(match[1]) / 100, match[2]))
        else:
            found.append((line, []))
    return found


def test_predict_takes_directories_among_files(run, digits, capsys):
    def predict(*args) -> list:
        assert cli.main(["predict", "--run", str(run), "--top", "3", *map(str, args)]) == 0
        return percentages(capsys.readouterr().out)

    alone = [prediction for name in DIGITS for prediction in predict(digits / name)]
    assert [file for file, _ in alone] == [str(digits / name) for name in DIGITS]
    assert {len(classes) for _, classes in alone} == {3}
    for more in ((), ("--batch-size", 2)):
        together = predict(digits, digits / "a.png", *more)
        assert [file for file, _ in together] == [file for file, _ in [*alone, alone[0]]]
        for (_, found), (_, expected) in zip(together, [*alone, alone[0]], strict=True):
            assert found == [(pytest.approx(share, abs=2e-4), name) for share, name in expected]


def test_predict_for_programs(run, digits, tmp_path, capsys):
    def predict(*args) -> str:
        assert cli.main(["predict", "--run", str(run), "--top", "2", str(digits), *map(str, args)]) == 0
        return capsys.readouterr().out

    expected = percentages(predict())
    rows = [json.loads(line) for line in predict("--format", "jsonl").splitlines()]
    for row, (file, top) in zip(rows, expected, strict=True):
        assert [*row] == ["path", "prediction", "probability", "top"]
        assert row["path"] == file
        assert {"class": row["prediction"], "probability": row["probability"]} == row["top"][0]
        assert [(c["probability"], c["class"]) for c in row["top"]] == [(pytest.approx(p, abs=6e-5), c) for p, c in top]

    out = tmp_path / "out.csv"
    out.write_text("what was there before")
    assert predict("--output", out) == f"{out}: 5 predictions\n"
    with out.open(newline="") as file:
        heading, *table = csv.reader(file)
    assert ",".join(heading) == (
        "path,prediction,probability,top_1_class,top_1_probability,top_2_class,top_2_probability"
    )
    for cells, row in zip(table, rows, strict=True):
        flat = [value for entry in row["top"] for value in entry.values()]
        assert cells == [row["path"], row["prediction"], str(row["probability"]), *map(str, flat)]
    assert predict("--format", "csv") == out.read_text()
    predict("--output", tmp_path / "out.jsonl")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows
    predict("--output", tmp_path / "out", "--format", "csv")
    assert (tmp_path / "out").read_text() == out.read_text()
    assert not [*tmp_path.glob("*.partial")]


def test_predictions_are_written_though_a_file_is_bad_and_refused_where_they_cannot_be(run, digits, tmp_path, capsys):
    (digits / "torn.png").write_text("torn")
    out = tmp_path / "out.csv"
    predict = ["predict", "--run", str(run), str(digits), "--output"]
    assert cli.main([*predict, str(out)]) == 2
    said = capsys.readouterr()
    assert said.out == f"{out}: 5 predictions\n"
    assert said.err.endswith(
        ": 1 of 6 files cannot be read as images, each is named above; the predictions on all others are there\n"
    )
    assert len(out.read_text().splitlines()) == 6
    before = out.read_bytes()
    for args, message in (
        ([str(tmp_path / "out.txt")], f"--output {tmp_path}/out.txt: a file is written as .csv or .jsonl: name it so"),
        ([str(out), "--format", "text"], "--format text: a file is written as .csv or .jsonl"),
        ([f"{tmp_path}/no/out.csv"], f"there is no directory {tmp_path}/no to write out.csv into"),
    ):
        assert cli.main([*predict, *args]) == 2
        assert message in capsys.readouterr().err
    assert out.read_bytes() == before


def test_predict_names_what_it_leaves_out_and_what_it_cannot_read(run, digits, tmp_path, capsys):
    predict = ["predict", "--run", str(run)]
    for name in ("b/torn.png", "torn.jpg"):
        (digits / name).write_text("torn")
    assert cli.main([*predict, str(digits)]) == 2
    said = capsys.readouterr()
    assert [file for file, _ in percentages(said.out)] == [str(digits / name) for name in DIGITS]
    _, note, *warnings, error = said.err.splitlines()
    assert note == f"note: {digits}: left out 2: 1 hidden (.a.png), 1 without an image's ending (notes.txt)"
    assert warnings == [
        f"warning: cannot read {digits}/{name} as an image: no known image format"
        for name in ("torn.jpg", "b/torn.png")
    ]
    assert error == (
        "error: 2 of 7 files cannot be read as images, each is named above; the predictions on all others are there"
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    for path, message in (
        (tmp_path / "empty", f"error: the directory {tmp_path}/empty has no images: expected files that end in .jpg, "),
        (tmp_path / "nowhere.png", f"error: there is no file {tmp_path}/nowhere.png\n"),
    ):
        assert cli.main([*predict, str(digits), str(path)]) == 2
        said = capsys.readouterr()
        assert said.out == "", "refused before anything is read"
        assert message in said.err


def test_damaged_files_of_a_run_are_named(run, tmp_path, capsys):
    import shutil

    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    metrics = damaged / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([lines[0], '{"kind": "tr\n', *lines[2:]]))
    command = [*SMALL, "--model.attention.kernel-sizes", "3", "--workdir", str(damaged), "--epochs", "3"]
    assert cli.train_main(command) == 2
    assert f"{metrics}, line 2: " in capsys.readouterr().err
    (damaged / "checkpoints" / "10" / "run" / "metadata").write_text("")
    assert cli.main(["evaluate", "--run", str(damaged)]) == 2
    assert f"cannot read the checkpoint {damaged}/checkpoints/10: " in capsys.readouterr().err


def test_a_second_process_in_the_same_run_directory_is_refused(run, capsys):
    import fcntl

    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert cli.train_main([*SMALL, "--model.attention.kernel-sizes", "3", "--workdir", str(run)]) == 2
    assert "another process is training in" in capsys.readouterr().err


def test_other_data_than_the_checkpoint_s_are_refused(run, capsys):
    args = [*SMALL, "--model.attention.kernel-sizes", "3", "--workdir", str(run), "--data.train-split", "train[:328]"]
    assert cli.train_main(args) == 2
    assert "training examples: 320 -> 328" in capsys.readouterr().err
