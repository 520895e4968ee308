"""Names on the Hugging Face hub, from its cache as huggingface_hub lays it out; nothing connects."""

import json
import socket
import time

import numpy as np
import pytest
from flax import nnx
from huggingface_hub import constants

from eca_jax import create_model, load_pretrained
from eca_jax.convert import pretrained
from eca_jax.convert.files import write_safetensors
from eca_jax.convert.state_dict import NATIVE, to_state_dict
from eca_jax.data.preprocess import PreprocessConfig
from eca_jax.errors import EcaJaxError
from tests.damage import refusal

NAME, COMMIT = "ecaresnet26t.ra2_in1k", "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "architecture": "ecaresnet26t",
    "num_classes": 10,
    "num_features": 256,
    "global_pool": "avg",
    "pretrained_cfg": {
        "tag": "ra2_in1k",
        "custom_load": False,
        "input_size": [3, 256, 256],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.8,
        "crop_mode": "center",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.1, 0.2, 0.3],
        "num_classes": 10,
        "pool_size": [8, 8],
        "first_conv": "conv1.0",
        "classifier": "fc",
    },
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, offline, where a connection would fail the test."""

    def connect(*args):
        pytest.fail("a connection")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def model():
    return create_model("ecaresnet26t", width_multiplier=0.125, num_classes=10, rngs=nnx.Rngs(0))


@pytest.fixture
def cached(cache, model):
    repository = cache / f"models--timm--{NAME}"
    for directory in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (repository / directory).mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    write_safetensors(repository / "blobs" / "aa", to_state_dict(model, "timm"))
    (repository / "blobs" / "bb").write_text(json.dumps(CONFIG))
    for name, blob in (("model.safetensors", "aa"), ("config.json", "bb")):
        (repository / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/{blob}")
    return repository


@pytest.mark.parametrize("name", [NAME, f"timm/{NAME}"])
def test_a_name_is_the_model_in_the_cache(cached, model, name):
    loaded = load_pretrained(name)
    wanted, got = (to_state_dict(m, NATIVE) for m in (model, loaded))
    assert got.keys() == wanted.keys()
    for key in wanted:
        np.testing.assert_array_equal(got[key], wanted[key], err_msg=key, strict=True)
    assert loaded.architecture == model.architecture
    assert loaded.preprocess == PreprocessConfig(
        image_size=256, eval_resize=320, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)
    )


def test_a_directory_with_the_two_files_will_do(cached, model):
    loaded = load_pretrained(cached / "snapshots" / COMMIT)
    assert (loaded.architecture, loaded.preprocess.image_size) == (model.architecture, 256)


def test_the_model_that_is_expected_is_checked(cached):
    assert "'ecaresnet26t'" in refusal(load_pretrained, NAME, name="ecaresnet50t")


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", None], ids=["weights", "config", "all"])
def test_what_is_not_in_the_cache_says_which_files_to_put_where(request, missing):
    if missing:
        (request.getfixturevalue("cached") / "snapshots" / COMMIT / missing).unlink()
    message = refusal(load_pretrained, NAME)
    assert f"model.safetensors and config.json of 'timm/{NAME}'" in message
    assert "put both files into a directory and give its path" in message


def test_without_a_network_the_hub_is_asked_once(monkeypatch):
    """huggingface_hub's download would ask six times, with pauses of 23 s in all and two warnings each time."""
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits to ask again"))
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        for name in (proxy, proxy.upper()):
            monkeypatch.delenv(name, raising=False)
    assert "Name or service not known" in refusal(load_pretrained, NAME)
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["runs/digit", "runs/other"])
def test_what_is_in_a_directory_that_is_here_is_a_path(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_download", lambda repository: pytest.fail("the hub is asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    meant = " Did you mean runs/digits?" if name == "runs/digit" else ""
    message = refusal(load_pretrained, name)
    assert message == f"there is no file or directory {name}.{meant} (On the hub that would be hf-hub:{name}.)"


def test_a_name_on_the_hub_may_be_marked(cached, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm").mkdir()
    assert "hf-hub:timm/" in refusal(load_pretrained, f"timm/{NAME}")
    assert load_pretrained(f"hf-hub:timm/{NAME}").architecture == model.architecture


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"pretrained_cfg": {"input_size": [3]}}', json.dumps(CONFIG).replace("0.8", "0")]
)
def test_a_config_that_is_not_timm_s_is_named(cached, content):
    (cached / "blobs" / "bb").write_text(content)
    message = refusal(load_pretrained, NAME)
    assert str(cached / "snapshots" / COMMIT / "config.json") in message


@pytest.mark.parametrize("name", ["x y", "a\0b", "hf-hub:a/b/c"])
def test_what_can_be_no_name_on_the_hub_is_answered_shortly(name):
    with pytest.raises(EcaJaxError) as refused:
        load_pretrained(name)
    name = name.removeprefix("hf-hub:")
    assert str(refused.value) == (
        f"there is no file or directory {name!r}, and it is no name on the Hugging Face hub; "
        "expected one such as 'ecaresnet50d.miil_in1k' or 'owner/repository'"
    )


@pytest.mark.parametrize("name", ["", "hf-hub:"])
def test_no_name_is_not_this_directory(name):
    with pytest.raises(EcaJaxError, match=f"^weights: expected a file, the directory of a run or .*, got '{name}'$"):
        load_pretrained(name)
