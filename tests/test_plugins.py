"""A package outside the repository brings an attention and a backbone, and every command works with them."""

import contextlib
import importlib
import json
import pathlib
import re
import sys
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from flax import nnx

from eca_jax import cli, create_model, load_pretrained, plugins
from eca_jax.convert.files import read_weights, write_safetensors
from eca_jax.convert.leaves import SAME, register_layout
from eca_jax.convert.pretrained import own_metadata
from eca_jax.convert.state_dict import NATIVE, to_state_dict
from eca_jax.data.preprocess import eval_image, normalise
from eca_jax.data.sources import open_source
from eca_jax.export import read_about
from eca_jax.models.registry import MODELS
from eca_jax.nn.attention import ATTENTIONS, AttentionConfig, attention_row
from eca_jax.runs.run import load_run
from tests.commands import ROOT, run
from tests.damage import refusal
from tests.tiny import brought_from_outside

GATES = '''
"""An attention with two weights a channel."""
import dataclasses, pathlib
import jax, jax.numpy as jnp
from flax import nnx
from eca_jax.nn.attention import ATTENTIONS, Attention, ChannelGate

pathlib.Path(__file__).with_name("imported").touch()


@dataclasses.dataclass(frozen=True)
class MyOptions:
    start: float = 1.0


class MyGate(ChannelGate):
    def __init__(self, channels, start, dtype):
        self.weight = nnx.Param(jnp.full((channels,), start, dtype))
        self.offset = nnx.Param(jnp.zeros((channels,), dtype))

    def gate(self, s):
        return jax.nn.sigmoid(s * self.weight[...] + self.offset[...])


def build(slot, options, rngs):
    return MyGate(slot.channels, options.start, slot.param_dtype)


ATTENTIONS.register("my_gate", Attention(build, MyOptions))
'''
NETS = """
from eca_jax.models.registry import register_backbone
from tests.tiny import Tiny

register_backbone("my_net", Tiny)
"""
ENTRY_POINTS = """
[eca_jax.attentions]
my_gate = my_package.gates:MyGate
broken_gate = my_package.broken
[eca_jax.models]
my_net = my_package.nets
"""
BOTH = ("--plugin", "my_package.gates", "--plugin", "my_package.nets")
MODEL = ("--model.name", "my_net", "--model.attention.kind", "my_gate", "--model.attention.start", "2.0")
SIZES = ("--data.train-split", "train[:320]", "--data.eval-split", "test[:100]", "--optim.warmup-epochs", "1")


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> pathlib.Path:
    """Where my_package is, and its metadata in `installed`, so that a path may have the one without the other."""
    root = tmp_path_factory.mktemp("package")
    for name, text in {"__init__": "", "gates": GATES, "nets": NETS, "broken": "1 / 0"}.items():
        (root / "my_package").mkdir(exist_ok=True)
        (root / "my_package" / f"{name}.py").write_text(text)
    info = root / "installed" / "my_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return root


@pytest.fixture(scope="module", autouse=True)
def this_process(package):
    """Sees the package, not its metadata, and forgets it afterwards; has no cluster to join."""
    with pytest.MonkeyPatch.context() as patch, brought_from_outside(), modules_forgotten():
        patch.syspath_prepend(str(package))
        patch.setattr("eca_jax.sharding.initialize_cluster", lambda config: None)
        yield


@contextlib.contextmanager
def modules_forgotten() -> Iterator[None]:
    """Inside, nobody has imported the package; what is imported inside is forgotten."""
    before = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "my_package"}
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
            del sys.modules[name]
        sys.modules.update(before)


@pytest.fixture
def not_imported(package):
    """As a process that was not told of the package; fails if it was imported nevertheless."""
    with brought_from_outside(), modules_forgotten():
        for table in (ATTENTIONS, MODELS):
            for name in [name for name, plugin in table._plugins.items() if plugin.startswith("my_package")]:
                del table._entries[name], table._plugins[name]
        plugins._registered.difference_update({"my_package.gates", "my_package.nets"})
        (package / "my_package/imported").unlink(missing_ok=True)
        yield
        assert not (package / "my_package/imported").exists()
        assert "my_package" not in sys.modules


@pytest.fixture(scope="module")
def trained(tmp_path_factory, package, data_dir):
    """A run by the command line, which knows the package through its entry points alone."""
    workdir = tmp_path_factory.mktemp("plugins") / "run"
    path = f"{ROOT}:{package}:{package / 'installed'}"
    args = ("--workdir", str(workdir), "--epochs", "2", *MODEL, *SIZES)
    assert run("train.py", *args, PYTHONPATH=path).returncode == 0
    return workdir


@pytest.fixture(scope="module")
def imported():
    for name in BOTH[1::2]:
        plugins.load_plugin(name)
    return importlib.import_module("my_package.gates")


@nnx.jit
def compute(model, images):
    return model(normalise(images, model.preprocess))


def logits_of(model) -> np.ndarray:
    """Of the first five test images."""
    return np.asarray(
        compute(model, np.stack([eval_image(data, model.preprocess) for data, _ in open_source("digits", "test[:5]")]))
    )


@pytest.fixture(scope="module")
def expected(trained, imported) -> np.ndarray:
    return logits_of(load_run(trained)[0])


@pytest.fixture(scope="module")
def weights(trained, imported) -> pathlib.Path:
    path = trained.with_name("weights.safetensors")
    assert cli.main(["convert", str(trained), str(path), *BOTH]) == 0
    return path


@pytest.fixture(scope="module")
def config_file(trained, imported) -> pathlib.Path:
    """Of the run, in Python, as its author would write it: it imports the package itself."""
    path = trained.with_name("config.py")
    path.write_text(
        "import dataclasses, my_package.gates, my_package.nets\n"
        "from eca_jax.config import load_config\n"
        "from eca_jax.nn.attention import AttentionConfig\n"
        f"digits = load_config({str(ROOT / 'configs/digits.py')!r})\n"
        "data = dataclasses.replace(digits.data, train_split='train[:320]', eval_split='test[:100]')\n"
        "attention = AttentionConfig('my_gate', start=2.0)\n"
        "model = dataclasses.replace(digits.model, name='my_net', attention=attention)\n"
        "config = dataclasses.replace(digits, model=model, data=data, epochs=2)\n"
    )
    return path


def error(capsys) -> str:
    """What a command printed: one line."""
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed


# Every command


def test_a_run_says_what_it_needs(trained):
    config = json.loads((trained / "config.json").read_text())
    assert config["plugins"] == ["my_package.gates", "my_package.nets"]
    assert config["model"]["attention"] == {"kind": "my_gate", "start": 2.0}


def test_its_parameters_are_trained(trained, imported):
    model, _, _ = load_run(trained)
    assert isinstance(model.attn, imported.MyGate)
    assert len(np.unique(model.attn.weight[...])) > 1
    assert np.asarray(model.attn.weight[...]) == pytest.approx(2.0, abs=0.5)


def test_evaluate_and_predict(trained, weights, tmp_path, capsys):
    (row,) = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1:]
    assert cli.main(["evaluate", "--run", str(trained), *BOTH]) == 0
    of_run = capsys.readouterr().out
    assert f"step 10: top-1 {row['top1']:.2%} (" in of_run
    image = tmp_path / "digit.png"
    image.write_bytes(open_source("digits", "test")[0][0])
    lines = []
    for source in (("--run", str(trained)), ("--weights", str(weights))):
        assert cli.main(["predict", str(image), *source, *BOTH]) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]


def test_a_weight_file_has_the_same_logits_and_becomes_a_run_that_goes_on(weights, config_file, expected, tmp_path):
    np.testing.assert_array_equal(logits_of(load_pretrained(weights)), expected)
    again = tmp_path / "again"
    convert = ["convert", str(weights), str(again), "--to", "orbax", "--config", str(config_file)]
    assert cli.main(convert) == 0
    np.testing.assert_array_equal(logits_of(load_run(again)[0]), expected)
    assert cli.train_main(["--config", str(config_file), "--workdir", str(again), *BOTH]) == 0
    assert np.abs(logits_of(load_run(again)[0]) - expected).max() > 0.01


def test_export(trained, expected, tmp_path):
    path = tmp_path / "net.stablehlo"
    assert cli.main(["export", str(trained), str(path), "--platforms", "cpu", *BOTH]) == 0
    about = read_about(path)
    assert (about["architecture"]["attention"]["kind"], about["plugins"]) == ("my_gate", [*BOTH[1::2]])
    model = load_run(trained)[0]
    pixels = np.stack([eval_image(data, model.preprocess) for data, _ in open_source("digits", "test[:5]")])
    found = jax.export.deserialize(bytearray(path.read_bytes())).call(normalise(pixels, model.preprocess))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_fine_tuning_starts_from_it(trained, config_file, tmp_path):
    args = ["--model.pretrained", str(trained), "--model.skip", "fc.*", "--optim.lr", "1e-9", "--epochs", "1"]
    tuned = tmp_path / "tuned"
    args += ["--optim.warmup-epochs", "0.5", "--workdir", str(tuned)]
    assert cli.train_main(["--config", str(config_file), *args]) == 0
    old, new = (to_state_dict(load_run(workdir)[0], NATIVE) for workdir in (trained, tuned))
    np.testing.assert_allclose(new["attn.weight"], old["attn.weight"], rtol=1e-6)
    assert np.abs(new["fc.kernel"] - old["fc.kernel"]).max() > 0.01


def test_other_frameworks_need_a_layout(imported, tmp_path, capsys):
    settings = {"attention": AttentionConfig("my_gate"), "width_multiplier": 0.125}
    model = create_model("resnet18", num_classes=3, rngs=nnx.Rngs(0), **settings)
    source, target = tmp_path / "own.safetensors", tmp_path / "theirs.safetensors"
    write_safetensors(source, to_state_dict(model, NATIVE), own_metadata(model))

    def convert(to: str) -> int:
        return cli.main(["convert", str(source), str(target), "--to", to, *BOTH])

    for to in ("timm", "ecanet"):
        assert convert(to) == 2
        assert f"{to} has no model with the attention 'my_gate'" in error(capsys)
    with brought_from_outside():
        register_layout(imported.MyGate, {"weight": ("weight", SAME)}, sources=("timm",))
        assert convert("timm") == 2
        message = "timm: nobody has said how the array 'offset' of the layer MyGate (layer1.0.attn) is laid out"
        assert message in error(capsys)
        register_layout(imported.MyGate, {"weight": ("weight", SAME), "offset": ("bias", SAME)}, sources=("timm",))
        assert convert("timm") == 0
        assert convert("ecanet") == 2
    tensors = read_weights(target).tensors
    np.testing.assert_array_equal(tensors["layer1.0.se.weight"], np.ones(8))
    np.testing.assert_array_equal(tensors["layer4.1.se.bias"], np.zeros(64))
    np.testing.assert_array_equal(tensors["fc.weight"], model.fc.kernel[...].T)


# What is not given is not imported, and is named


def test_a_run_or_weights_without_the_plugin_name_it(trained, weights, not_imported, capsys):
    needs = (
        "it was written with my_package.gates, my_package.nets: give --plugin my_package.gates --plugin my_package.nets"
    )
    for args in (["evaluate", "--run", str(trained)], ["evaluate", "--weights", str(weights), "--data", "digits"]):
        assert cli.main(args) == 2
        assert needs in error(capsys)
    assert cli.main(["convert", str(trained), str(weights.with_name("other.safetensors"))]) == 2
    assert needs in error(capsys)


def test_a_run_that_names_a_module_does_not_import_it(trained, not_imported, package, tmp_path, capsys):
    """A file from elsewhere may name any module, also one that is there."""
    values = json.loads((trained / "config.json").read_text())
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(json.dumps(values | {"plugins": ["my_package.gates"]}))
    assert cli.main(["evaluate", "--run", str(tmp_path / "run")]) == 2
    assert "it was written with my_package.gates: give --plugin my_package.gates" in error(capsys)


def test_an_unknown_attention_is_answered_with_the_way_to_bring_one(not_imported):
    message = refusal(AttentionConfig, "my_gate")
    assert re.match(
        r"attention.kind: unknown attention 'my_gate'\..* \(One of a package of your own: --plugin ", message
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_package.broken", "plugin my_package.broken: ZeroDivisionError: division by zero"),
        ("my_package.absent", "plugin my_package.absent: ModuleNotFoundError: No module named 'my_package.absent'"),
        ("absent.py", "plugin absent.py: there is no such file"),
        ("leaving.py", "plugin {}: it ended the process (SystemExit: 0) where it should only define things"),
        ("taken.py", "plugin {}: the attention 'eca' is registered already, by eca_jax itself"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(name, message, tmp_path, capsys):
    files = {"taken.py": "from eca_jax.nn.attention import *\nATTENTIONS.register('eca', None)\n"}
    files["leaving.py"] = "import sys\nsys.exit(0)\n"
    if name in files:
        (tmp_path / name).write_text(files[name])
        name = str(tmp_path / name)
    for command in (lambda args: cli.main(["evaluate", *args]), cli.train_main):
        assert command(["--plugin", name]) == 2
        assert message.format(name) in error(capsys)


def test_an_entry_point_is_found_when_it_is_asked_for(not_imported, package, monkeypatch):
    monkeypatch.syspath_prepend(str(package / "installed"))
    assert "Did you mean my_gate" in refusal(attention_row, "my_gates")
    assert "plugin my_package.broken: ZeroDivisionError" in refusal(attention_row, "broken_gate")
    sys.modules.pop("my_package")  # of the broken one
