"""What cannot work is refused when the configuration is made, by name and with what was expected."""

import dataclasses
import json
import math
import pathlib
import re
from pathlib import Path as P
from typing import ClassVar

import numpy as np
import pytest
from flax import nnx

from eca_jax.config import CheckpointConfig, Config, differences, from_dict, load_config, packaged_configs, to_dict
from eca_jax.data.config import DataConfig
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.errors import EcaJaxError
from eca_jax.models.config import ModelConfig, build_model
from eca_jax.nn.attention import ATTENTIONS, Attention, AttentionConfig, Identity
from eca_jax.optim import OptimConfig, peak_rate
from eca_jax.recipes import paper
from eca_jax.sharding import ClusterConfig
from eca_jax.tasks import TASKS, Classification, MultiLabel
from eca_jax.tasks.mix import MixConfig
from tests.tiny import brought_from_outside

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_the_configurations_load_and_survive_json(path):
    config = load_config(str(path))
    assert from_dict(to_dict(config)) == config
    assert differences(config, from_dict(to_dict(config))) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(name="eca_resnet5"), "unknown model 'eca_resnet5'. Did you mean eca_resnet50"),
        (
            lambda: ModelConfig(dtype="float16"),
            "model.dtype: expected one of float32, bfloat16, float64, got 'float16'",
        ),
        (lambda: ModelConfig(width_multiplier=0), "model.width_multiplier: expected a positive number, got 0"),
        (lambda: AttentionConfig("ecaa"), "unknown attention 'ecaa'. Did you mean eca"),
        (lambda: AttentionConfig("eca", kernel_sizes=4), "expected an odd size of at least 1, got 4: .* use 3 or 5"),
        (
            lambda: ModelConfig(attention=AttentionConfig(kernel_sizes=4)),
            "expected an odd size of at least 1, got 4: .* use 3 or 5",
        ),
        (lambda: AttentionConfig("eca", kernel_sizes=(3, 5, 6, 7)), "expected an odd size of at least 1, got 6"),
        (lambda: AttentionConfig("eca", kernel_sizes=0), "expected an odd size of at least 1, got 0$"),
        (lambda: AttentionConfig("eca", kernel_sizes=-3), "expected an odd size of at least 1, got -3$"),
        (lambda: AttentionConfig("eca", kernel_sizes=100001), "expected an odd size of at most 255, got 100001"),
        (lambda: AttentionConfig("eca_ns", kernel_sizes=(3, 257, 3, 3)), "an odd size of at most 255, got 257"),
        (lambda: AttentionConfig("eca", kernel_sizes=()), "one for each stage, got none"),
        (lambda: AttentionConfig("eca", kernel_sizes="adaptiv"), "unknown policy 'adaptiv'"),
        (lambda: OptimConfig(schedule="cosin"), "optim.schedule: expected one of step, cosine"),
        (lambda: OptimConfig(lr=math.inf), "optim.lr: expected a positive number, got inf"),
        (lambda: OptimConfig(weight_decay=math.nan), "optim.weight_decay: expected 0 or more, got nan"),
        (lambda: OptimConfig(drop_epochs=(0,)), "optim.drop_epochs: expected epochs of at least 1"),
        (lambda: OptimConfig(drop_factor=5), "optim.drop_factor: expected 0 < drop_factor <= 1, got 5"),
        (lambda: OptimConfig(drop_factor=0), "optim.drop_factor: expected 0 < drop_factor <= 1, got 0"),
        (lambda: OptimConfig(decay_per_epoch=7), "optim.decay_per_epoch: expected 0 < decay_per_epoch <= 1, got 7"),
        (lambda: OptimConfig(decay_per_epoch=math.nan), "expected 0 < decay_per_epoch <= 1, got nan"),
        (lambda: ClusterConfig(coordinator="host:1"), "go together"),
        (lambda: ClusterConfig("host:1", num_processes=2, process_id=2), "process_id: expected 0 to 1, got 2"),
        (lambda: DataConfig(num_threads=0), "data.num_threads: expected a positive number, got 0"),
        (lambda: Config(seed=-1), "seed: expected 0 to"),
        (lambda: Config(model=ModelConfig(batch_norm_group=48)), r"batch_size 256 is not a multiple .* 48: use 240"),
        (lambda: ModelConfig(drop_path=1.0), "model.drop_path: expected 0 <= drop_path < 1, got 1.0"),
        (lambda: ModelConfig(skip=("fc.*",)), "model.skip: .* is of model.pretrained, which is not given"),
        (lambda: ModelConfig("resnet50", attention="ecaa"), "unknown attention 'ecaa'. Did you mean eca"),
        (
            lambda: PreprocessConfig(random_erasing_mode="noise"),
            "preprocess.random_erasing_mode: expected one of const, rand, pixel, got 'noise'",
        ),
        (lambda: MixConfig(mixup_alpha=-1), "mix.mixup_alpha: expected 0 or more, got -1"),
        (lambda: OptimConfig("adam"), "optim.name: expected one of sgd, adamw, lars, lamb, got 'adam'"),
        (lambda: OptimConfig("adamw", betas=(0.9, 1.0)), "optim.betas: expected 0 <= betas < 1, got 1.0"),
        (lambda: OptimConfig("adamw", betas=(0.9,)), r"optim.betas: expected \(a number, a number\), got \(0.9,\)"),
        (lambda: OptimConfig(schedule="cosine", min_lr=0.2), "expected 0 <= min_lr <= optim.lr, which is 0.1, got 0.2"),
        (lambda: OptimConfig(schedule="cosine", min_lr=math.nan), "optim.min_lr: expected 0 <= min_lr .* got nan"),
        (lambda: OptimConfig(min_lr=0.01), "optim.min_lr: is of optim.schedule cosine, which is step"),
        (lambda: Classification(loss_function="bce"), "loss_function: expected one of softmax, sigmoid, got 'bce'"),
        (lambda: Classification(target_threshold=0.2), "target_threshold: is of loss_function sigmoid"),
        (lambda: OptimConfig(clip_norm=0), "optim.clip_norm: expected a positive number, got 0"),
        (lambda: OptimConfig(lr_scales=(("fc.*", -1.0),)), r"expected a factor of 0 or more for 'fc.\*', got -1.0"),
        (
            lambda: Config(optim=OptimConfig(accumulate=3)),
            "batch_size 256 cannot be cut into optim.accumulate 3 .* 255",
        ),
        (
            lambda: Config(task=Classification(mix=MixConfig(1.0)), batch_size=255),
            r"batch_size 255: the task takes 2 examples together \(Mixup and CutMix: pairs\), so a multiple of 2",
        ),
    ],
)
def test_a_value_that_cannot_work_is_refused(make, message):
    with pytest.raises(EcaJaxError, match=message):
        make()


@dataclasses.dataclass(frozen=True)
class Limits:
    """The options of a plugin's attention, which check what they are given."""

    low: float = 0.0
    high: float | None = None

    def __post_init__(self):
        if self.high is not None and not self.low < self.high:
            raise EcaJaxError(f"attention.low: expected less than {self.high}, got {self.low}")


@dataclasses.dataclass(frozen=True)
class Own(Classification):
    """A plugin's task, which checks what it is given."""

    beams: int = 4

    name: ClassVar[str] = "own"

    def __post_init__(self):
        super().__post_init__()
        if self.beams < 1:
            raise EcaJaxError(f"beams: expected 1 or more, got {self.beams}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(epochs="3"), "epochs: expected a whole number, got '3'"),
        (lambda: Config(epochs=3.5), "epochs: expected a whole number, got 3.5"),
        (lambda: Config(batch_size=np.float32(2)), "batch_size: expected a whole number, got np.float32(2.0)"),
        (lambda: Config(model="eca_resnet50"), "model: expected ModelConfig, got 'eca_resnet50'"),
        (lambda: Config(model=None), "model: expected ModelConfig, got None"),
        (lambda: Config(task=None), "task: expected Task, got None"),
        (lambda: Config(task=Classification), "task: expected Task, got <class 'eca_j"),
        (lambda: Config(optim={}), "optim: expected OptimConfig, got {}"),
        (
            lambda: Config(sharding_rules=(("fc", "data"),)),
            "sharding_rules: expected ((text, (text or None, ...)), ...), got (('fc', 'data'),)",
        ),
        (lambda: OptimConfig(lr="0.1"), "optim.lr: expected a number, got '0.1'"),
        (lambda: OptimConfig(lr=None), "optim.lr: expected a number, got None"),
        (lambda: OptimConfig(lr=True), "optim.lr: expected a number, got True"),
        (lambda: OptimConfig(lr=10**400), "optim.lr: expected a number, got 100000000000000000...0000000000000000000"),
        (lambda: OptimConfig(clip_norm="1"), "optim.clip_norm: expected a number or None, got '1'"),
        (lambda: OptimConfig(drop_epochs=30), "optim.drop_epochs: expected (a whole number, ...), got 30"),
        (lambda: OptimConfig(lr_scales="fc.*"), "optim.lr_scales: expected ((text, a number), ...), got 'fc.*'"),
        (lambda: CheckpointConfig(every_epochs=0.5), "checkpoint.every_epochs: expected a whole number, got 0.5"),
        (lambda: ClusterConfig(coordinator=1), "cluster.coordinator: expected text or None, got 1"),
        (lambda: DataConfig(name=5), "data.name: expected text, got 5"),
        (lambda: ModelConfig(name=5), "model.name: expected text, got 5"),
        (lambda: ModelConfig(small_stem="no"), "model.small_stem: expected True or False, got 'no'"),
        (lambda: ModelConfig(skip="fc.*", pretrained="x"), "model.skip: expected (text, ...), got 'fc.*'"),
        (lambda: ModelConfig(attention=5), "model.attention: expected AttentionConfig, got 5"),
        (lambda: ModelConfig(attention={"kernel_sizes": 3.5}), "attention.kernel_sizes: expected a whole number or"),
        (lambda: PreprocessConfig(std=0.5), "preprocess.std: expected (a number, a number, a number), got 0.5"),
        (lambda: PreprocessConfig(mean=object()), "preprocess.mean: expected (a number, a number, a number), got <obj"),
        (lambda: PreprocessConfig(vertical_flip=0.5), "preprocess.vertical_flip: expected True or False, got 0.5"),
        (
            lambda: PreprocessConfig(color_jitter=0.4),
            "preprocess.color_jitter: expected (a number, a number, a number,",
        ),
        (lambda: PreprocessConfig(color_jitter=(0.4,) * 3), "preprocess.color_jitter: expected (a number, a number,"),
        (lambda: PreprocessConfig(random_erasing="pixel"), "preprocess.random_erasing: expected a number, got 'pixel'"),
        (lambda: MixConfig("0.2"), "mix.mixup_alpha: expected a number, got '0.2'"),
        (lambda: Classification(preprocess=MixConfig()), "preprocess: expected PreprocessConfig, got MixConfig("),
        (lambda: MultiLabel(threshold="0.5"), "threshold: expected a number, got '0.5'"),
        (lambda: Own(beams="4"), "beams: expected a whole number, got '4'"),
        (lambda: Own(label_smoothing="0"), "label_smoothing: expected a number, got '0'"),
        (lambda: AttentionConfig(3), "attention.kind: expected text or None, got 3"),
        (
            lambda: AttentionConfig("eca", kernel_sizes=3.0),
            "attention.kernel_sizes: expected a whole number or (a whole number, ...) or text, got 3.0",
        ),
        (lambda: AttentionConfig("se", reduction="8"), "attention.reduction: expected a whole number or None, got '8'"),
        (lambda: AttentionConfig("limits", low="0"), "attention.low: expected a number, got '0'"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(make, message):
    with brought_from_outside():
        ATTENTIONS.register("limits", Attention(lambda slot, options, rngs: Identity(), Limits))
        with pytest.raises(EcaJaxError, match=re.escape(message)):
            make()


def test_what_json_would_give_back_is_accepted_and_becomes_plain():
    """Whole numbers for floats, lists for tuples, NumPy's scalars and paths."""
    config = Config(
        model=ModelConfig(attention=AttentionConfig(kernel_sizes=[np.int64(3)] * 4), skip=["fc.*"], pretrained=P("w")),
        optim=OptimConfig(lr=np.float32(0.5), drop_epochs=[np.int64(5), 7], lr_scales=[["fc.*", 1]], momentum=0),
        sharding_rules=[["fc/kernel", [None, "data"]]],
        batch_size=np.int64(64),
        workdir=P("runs") / "mine",
    )
    assert (config.batch_size, config.workdir) == (64, "runs/mine")
    assert type(config.batch_size) is int
    assert (config.optim.drop_epochs, config.optim.lr_scales) == ((5, 7), (("fc.*", 1.0),))
    assert [type(value) for value in (config.optim.lr, config.optim.momentum)] == [float, float]
    assert config.sharding_rules == (("fc/kernel", (None, "data")),)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_a_workdir_may_begin_at_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert Config(workdir="~/runs/mine").workdir == "/home/me/runs/mine"
    assert Config(workdir="runs/~mine").workdir == "runs/~mine"


def test_the_attention_may_be_said_by_its_kind_alone():
    said = ModelConfig("resnet50", attention="eca")  # type: ignore
    assert said == ModelConfig("resnet50", attention=AttentionConfig("eca"))


@pytest.mark.parametrize("width", [200.0, 1e6, 1e300])
def test_a_width_that_no_machine_can_hold_is_refused_by_arithmetic(width):
    for name in ("resnet18", "mobilenet_v2"):
        config = ModelConfig(name, width_multiplier=width)
        with pytest.raises(EcaJaxError, match=r"width_multiplier: too large, .* expected at most 536870912"):
            nnx.eval_shape(lambda config=config: build_model(config, 10, nnx.Rngs(0)))


@pytest.mark.parametrize("name", ["epochs", "data", "config", "version"])
def test_a_field_of_a_task_that_the_command_line_could_not_tell_from_another_is_refused(name):
    base = dataclasses.make_dataclass("Own", [(name, int, 3)], bases=(Classification,), frozen=True)
    task = type("Own", (base,), {"name": "own"})
    with brought_from_outside():
        TASKS.register("own", task)
        with pytest.raises(EcaJaxError, match=rf"task: Own has fields that .*: {name}; give them other names"):
            Config(task=task())


def test_fields_of_another_version_and_wrong_types_are_named():
    values = to_dict(Config())
    with pytest.raises(EcaJaxError, match=r"unknown fields optim\.nesterov"):
        from_dict(values | {"optim": values["optim"] | {"nesterov": True}})
    with pytest.raises(EcaJaxError, match=r"config: Expected `int`, got `str` - at `\$.epochs`"):
        from_dict(values | {"epochs": "3"})


def test_a_field_that_an_earlier_version_did_not_have_has_its_default():
    """In what is written of the configuration too, which a continued run is compared by."""
    values = to_dict(Config())
    before = {
        name: {"name": part["name"]} if name in ("model", "data", "task") else part for name, part in values.items()
    }
    before["optim"] = before["checkpoint"] = {}
    config = from_dict(before)
    assert config == Config()
    assert to_dict(config) == values
    assert differences(config, Config()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("task", 5), ("task", {"name": 5}), ("plugins", 5), ("plugins", [5]), ("optim", 3), ("model", {"name": []})],
)
@pytest.mark.parametrize("version", ["0.1.0", "today"])
def test_values_of_another_form_are_named_whatever_version_wrote_them(name, value, version):
    values = to_dict(Config())
    if version == "0.1.0":
        del values["task"]
    with pytest.raises(EcaJaxError, match=rf"^config: Expected .* at `\$\.{name}") as caught:
        from_dict(values | {name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = Config(", "broken.py, line 1: SyntaxError"),
        ("import nowhere", "broken.py: ModuleNotFoundError: No module named 'nowhere'"),
        ("from eca_jax.config import Config\nconfig = Config(epoch=3)", "broken.py: TypeError: .*'epoch'"),
        (
            "from eca_jax.config import Config\nconfig = Config(epochs=1.5)",
            "epochs: expected a whole number, got 1.5",
        ),
        ("from eca_jax.config import Config\nconfig = Config(epochs=0)", "epochs: expected a positive number, got 0"),
        ("import sys\nsys.exit()", r"broken.py: it ended the process \(SystemExit"),
        ("config = '\0'", "broken.py: SyntaxError: source code string cannot contain null bytes"),
        ("config = 3", r"must define `config = Config\(...\)`, got int"),
    ],
)
def test_a_broken_configuration_file_is_named(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(EcaJaxError, match=message):
        load_config(str(tmp_path / "broken.py"))


def test_a_missing_configuration_file_is_answered_with_those_that_are_there(tmp_path):
    with pytest.raises(EcaJaxError, match=r"no file configs/eca_resnet5.py; there are: configs/eca_resnet50.py"):
        load_config("configs/eca_resnet5.py")
    with pytest.raises(EcaJaxError, match=r"no file configs; there are: .*configs/digits.py"):
        load_config("configs")
    with pytest.raises(EcaJaxError, match=r"no configuration nope; there are: cifar10, digits, eca_mobilenet_v2, "):
        load_config("nope")  # beside train.py
    with pytest.raises(EcaJaxError, match=r"no configuration ecaresnet50; there are: ecaresnet50t, eca_resnet50"):
        load_config("ecaresnet50")
    (tmp_path / "config.txt").write_text("config = 3")
    with pytest.raises(EcaJaxError, match=r"config.txt: expected a Python file \(.py\) that defines"):
        load_config(str(tmp_path / "config.txt"))


def test_the_package_s_own_configurations_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert packaged_configs().keys() == {file.stem for file in (ROOT / "configs").glob("*.py")}
    assert load_config("eca_resnet50") == paper("eca_resnet50")


def test_what_a_continued_run_may_change():
    old = Config()
    allowed = dataclasses.replace(old, epochs=200, log_every=1, workdir="elsewhere", data=DataConfig(num_threads=1))
    assert differences(old, allowed) == []
    assert differences(old, dataclasses.replace(old, seed=1)) == ["seed: 0 -> 1"]


def test_the_paper_s_rate_and_group_stay_right_when_the_batch_grows():
    """Linear scaling, and statistics over as many images as one of the authors' GPUs held."""
    for name, batch, rate in (("eca_resnet50", 256, 0.1), ("eca_resnet50", 1024, 0.4), ("mobilenet_v2", 384, 0.18)):
        config = dataclasses.replace(paper(name), batch_size=batch)
        assert peak_rate(config.optim, config.batch_size) == pytest.approx(rate)
        assert config.model.batch_norm_group == (96 if name == "mobilenet_v2" else 64)
