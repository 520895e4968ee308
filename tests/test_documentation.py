"""Code blocks of the pages and examples in docstrings do what they say (tests/documentation.py has the rules)."""

import sys
import time
import types

import pytest

from tests import documentation
from tests.tiny import brought_from_outside


@pytest.mark.parametrize("page", documentation.PAGES)
def test_blocks_say_what_they_are(page):
    """Each has a known language and known marks, each Python block compiles, each excerpt is in its file."""
    found = {str(block): list(documentation.faults(block)) for block in documentation.blocks(page)}
    assert {block: faults for block, faults in found.items() if faults} == {}
    fences = sum(line.lstrip().startswith("```") for line in (documentation.ROOT / page).read_text().splitlines())
    assert fences == 2 * len(found)


@pytest.mark.parametrize("page", documentation.PAGES)
def test_links_lead_somewhere(page):
    assert documentation.dead_links(page) == []


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("documentation")


@pytest.mark.docs
@pytest.mark.parametrize("page", documentation.PAGES)
def test_page(page, tmp_path, kept, monkeypatch):
    """Its blocks run one after the other, in one directory."""
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as in `python` and in notebooks
    monkeypatch.delitem(sys.modules, "tests.tiny_plugin", raising=False)  # which registers when it is imported
    before = set(sys.modules)
    context = documentation.Page(tmp_path, kept, module)
    missing = {}
    try:
        with brought_from_outside():
            for block in documentation.blocks(page):
                started = time.process_time()
                try:
                    absent = set(context.run(block))
                except Exception as error:
                    error.add_note(f"the block at {block}")
                    raise
                print(f"{block}: {time.process_time() - started:.1f} s of the processor")
                missing |= {str(block): sorted(absent)} if absent and absent <= documentation.PACKAGES.keys() else {}
    finally:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
                del sys.modules[name]
    if missing:
        pytest.skip(f"everything passed but these, which were only read for want of packages: {missing}")


@pytest.mark.docs
@pytest.mark.parametrize("name", documentation.MODULES)
def test_examples(name, tmp_path, kept, monkeypatch):
    """Those in docstrings, in a directory with runs/digits."""
    if name.startswith("eca_jax.plots"):
        pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    monkeypatch.chdir(tmp_path)
    documentation.SETUPS["run"](documentation.Page(tmp_path, kept, types.ModuleType("__main__")))
    assert documentation.run_examples(name) == ""


def test_commands_in_scripts():
    script = """
# a comment, eca-jax nothing
pip install 'eca-jax[tpu]' && eca-jax check folder:/a  # and so on
srun .venv/bin/python train.py --config digits \\
  --epochs 2 > log.txt; status=$?
ssh host --command "
  cd eca_jax && eca-jax evaluate --run 'runs/a b'"
"""
    commands = documentation.simple_commands(script)
    found = [args for words in commands for args in documentation.invocations(words)]
    assert found == [
        ["check", "folder:/a"],
        ["train", "--config", "digits", "--epochs", "2"],
        ["evaluate", "--run", "runs/a b"],
    ]


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        ("train --epoch 3", "unknown option --epoch"),
        ("train --epochs many", "--epochs: expected a whole number"),
        ("evaluate --rum runs/digits", "unknown option --rum"),
        ("precompile --target v5e-8 --optim.rl 1", "unknown option --optim.rl"),
        ("estimate --run runs/digits", "estimate"),
    ],
)
def test_a_typo_in_a_command_is_found(args, fault):
    from eca_jax.errors import EcaJaxError

    with pytest.raises(EcaJaxError, match=fault):
        documentation.check_arguments(args.split())
    documentation.check_arguments(["train", "--epochs", "3", "--optim.lr", "0.1"])
    documentation.check_arguments(["benchmark", "input", "--data.num-threads", "2"])


def test_a_script_fails_where_a_command_of_it_does(tmp_path):
    documentation.run_script(tmp_path, "eca-jax --help > help && grep -q precompile help; cat help | wc -l", [])
    with pytest.raises(AssertionError, match="ended with 2"):
        documentation.run_script(tmp_path, "ls\neca-jax evaluate --run nothing\n", [])
    with pytest.raises(AssertionError, match="evaluate --run nothing': 2"):
        documentation.run_script(tmp_path, "eca-jax evaluate --run nothing || true", [])
    with pytest.raises(AssertionError, match="ended with 127"):
        documentation.run_script(tmp_path, "pip install something", [])


def test_faults_of_a_block():
    def faults(language, text, **marks):
        return " ".join(documentation.faults(documentation.Block("README.md", 1, language, text, marks)))

    assert faults("python", "x = 1\n") == faults("", "x: 1\n") == faults("sh", "ls", needs="a download") == ""
    assert "unknown mark 'need'" in faults("sh", "ls", need="a download")
    assert "unknown 'a donwload'" in faults("sh", "ls", needs="a donwload")
    assert "unknown 'photo graph'" in faults("sh", "ls", setup="photo graph")
    assert "unknown language 'bash'" in faults("bash", "ls")
    assert "a command in a block of output" in faults("text", "eca-jax train\n")
    assert "invalid syntax" in faults("python", "x = \n")
    assert faults("python", "ROOT\n", excerpt="LICENSE") == "LICENSE has no such line here: ROOT"
