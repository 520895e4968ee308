"""What cannot work is refused when the configuration is made, by name and with what was expected."""

import dataclasses
import math
import pathlib

import pytest
from flax import nnx

from eca_jax.config import Config, differences, from_dict, load_config, packaged_configs, to_dict
from eca_jax.data.config import DataConfig
from eca_jax.errors import EcaJaxError
from eca_jax.models.config import ModelConfig, build_model
from eca_jax.nn.attention import AttentionConfig
from eca_jax.optim import OptimConfig, peak_rate
from eca_jax.recipes import paper
from eca_jax.sharding import ClusterConfig
from eca_jax.tasks import TASKS, Classification
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
        (lambda: AttentionConfig("eca", kernel_sizes=0), "expected an odd size of at least 1, got 0: .* use 1 or 3"),
        (lambda: AttentionConfig("eca", kernel_sizes=100001), "expected an odd size of at most 255, got 100001"),
        (lambda: AttentionConfig("eca_ns", kernel_sizes=(3, 257, 3, 3)), "an odd size of at most 255, got 257"),
        (lambda: AttentionConfig("eca", kernel_sizes=3.0), "expected an odd whole number, got 3.0"),
        (lambda: AttentionConfig("eca", kernel_sizes=()), "one for each stage, got none"),
        (lambda: AttentionConfig("eca", kernel_sizes="adaptiv"), "unknown policy 'adaptiv'"),
        (lambda: OptimConfig(schedule="cosin"), "optim.schedule: expected one of step, cosine"),
        (lambda: OptimConfig(lr=math.inf), "optim.lr: expected a positive number, got inf"),
        (lambda: OptimConfig(weight_decay=math.nan), "optim.weight_decay: expected 0 or more, got nan"),
        (lambda: OptimConfig(drop_epochs=(0,)), "optim.drop_epochs: expected epochs of at least 1"),
        (lambda: ClusterConfig(coordinator="host:1"), "go together"),
        (lambda: ClusterConfig("host:1", num_processes=2, process_id=2), "process_id: expected 0 to 1, got 2"),
        (lambda: DataConfig(num_threads=0), "data.num_threads: expected a positive number, got 0"),
        (lambda: Config(seed=-1), "seed: expected 0 to"),
        (lambda: Config(model=ModelConfig(batch_norm_group=48)), r"batch_size 256 is not a multiple .* 48: use 240"),
        (lambda: ModelConfig(drop_path=1.0), "model.drop_path: expected 0 <= drop_path < 1, got 1.0"),
        (lambda: ModelConfig(skip=("fc.*",)), "model.skip: .* is of model.pretrained, which is not given"),
        (lambda: ModelConfig("resnet50", attention="ecaa"), "unknown attention 'ecaa'. Did you mean eca"),
        (lambda: MixConfig(mixup_alpha=-1), "mix.mixup_alpha: expected 0 or more, got -1"),
        (lambda: OptimConfig("adam"), "optim.name: expected one of sgd, lars, lamb, got 'adam'"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = Config(", "broken.py, line 1: SyntaxError"),
        ("import nowhere", "broken.py: ModuleNotFoundError: No module named 'nowhere'"),
        ("from eca_jax.config import Config\nconfig = Config(epoch=3)", "broken.py: TypeError: .*'epoch'"),
        (
            "from eca_jax.config import Config\nconfig = Config(epochs=1.5)",
            "Expected `int`, got `float` - at `\\$.epochs`",
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
