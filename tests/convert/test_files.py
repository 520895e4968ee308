"""Weight files that are damaged, forged or of something else, and files that cannot be written; no PyTorch needed."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from eca_jax import create_model, load_pretrained
from eca_jax.convert.files import digest, read_weights, write_safetensors
from eca_jax.convert.pretrained import own_metadata
from eca_jax.convert.state_dict import NATIVE, from_state_dict, to_state_dict
from tests.damage import disk_with, peak_memory, read_damaged, refusal


@pytest.fixture(scope="module")
def model():
    return create_model("eca_resnet18", num_classes=10, width_multiplier=0.125, small_stem=True, rngs=nnx.Rngs(0))


@pytest.fixture
def own(tmp_path, model):
    path = tmp_path / "own.safetensors"
    write_safetensors(path, to_state_dict(model, NATIVE), own_metadata(model))
    return path


@pytest.fixture
def foreign(tmp_path, model):
    path = tmp_path / "foreign.safetensors"
    write_safetensors(path, to_state_dict(model, "ecanet"))
    return path


def header_size(path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def write_header(path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 1000, -1])
def test_a_truncated_file_is_damaged(own, count):
    own.write_bytes(own.read_bytes()[:count])
    message = refusal(load_pretrained, own)
    assert message.startswith(f"{own} is {'damaged' if count else 'empty'}")


@pytest.mark.parametrize("place", ["weights", "metadata"])
def test_one_flipped_bit_is_damage(own, place):
    data = bytearray(own.read_bytes())
    data[-1 if place == "weights" else data.index(b"0.485") + 2] ^= 1  # the mean of the images: 0.585
    own.write_bytes(data)
    assert refusal(load_pretrained, own) == (
        f"{own} is damaged: it has not the SHA-256 that was written with it; get it again"
    )


def test_metadata_that_is_no_object_is_damage(own, model):
    tensors = to_state_dict(model, NATIVE)
    safetensors.numpy.save_file(tensors, own, {"eca_jax": "[1]", "sha256": digest(tensors, "[1]")})
    assert "no JSON object" in refusal(load_pretrained, own)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [500_000, 500_000], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [500_000, 500_000], "data_offsets": [0, 10**12]},
    ],
)
def test_a_header_that_claims_a_terabyte_costs_nothing(tmp_path, entry):
    path = tmp_path / "forged.safetensors"
    write_header(path, {"fc.weight": entry}, bytes(4))
    before = peak_memory()
    assert "is damaged" in refusal(load_pretrained, path)
    assert peak_memory() < 1.2 * before


def test_what_is_no_weight_file_is_named(tmp_path):
    assert refusal(read_weights, tmp_path).startswith(f"{tmp_path} is a directory; expected a weight file")
    assert refusal(read_weights, tmp_path / "a.pth") == f"there is no file {tmp_path / 'a.pth'}"
    other = tmp_path / "weights.h5"
    other.write_bytes(b"x")
    assert ".safetensors, .pth" in refusal(read_weights, other)
    text = tmp_path / "page.safetensors"
    text.write_text("<html>404</html>")
    assert "is damaged or no safetensors file" in refusal(read_weights, text)


def test_all_that_does_not_fit_is_in_one_error(model):
    tensors = to_state_dict(model, "ecanet")
    del tensors["layer2.0.bn2.bias"]
    tensors["layer2.0.extra"] = np.zeros(3, np.float32)
    tensors["layer3.1.bn1.weight"] = np.zeros(5, np.float32)
    message = refusal(from_state_dict, tensors)
    assert "missing: layer2.0.bn2.bias" in message
    assert "unexpected: layer2.0.extra" in message
    assert "of another shape: layer3.1.bn1.weight (5,) instead of (32,)" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named(model, value):
    tensors = to_state_dict(model, "ecanet")
    tensors["layer1.0.bn1.running_var"] = np.full(8, value, np.float32)
    assert "not finite: layer1.0.bn1.running_var" in refusal(from_state_dict, tensors)


def test_another_model_another_head_and_an_idle_pattern_are_refused(foreign):
    message = refusal(load_pretrained, foreign, name="eca_resnet50")
    assert message == "the weights are of 'eca_resnet18', the model asked for is 'eca_resnet50'"
    assert "skip=('fc.*',)" in refusal(load_pretrained, foreign, num_classes=7)
    message = refusal(load_pretrained, foreign, num_classes=7, skip=("fc.*", "head.*"))
    assert "match nothing: head.*" in message


def test_own_files_that_are_damaged_are_refused_or_the_same(own, model):
    size = own.stat().st_size
    ranges = [(0, 8), (0, header_size(own)), (0, size), (header_size(own), size)]
    outcomes = read_damaged(own, model, ranges, 500)
    assert False not in outcomes
    assert None in outcomes


def test_foreign_files_that_are_damaged_are_refused_or_have_the_right_shapes(foreign, model):
    """They have no checksum: flipped bits may load."""
    size = foreign.stat().st_size
    ranges = [(0, 8), (0, header_size(foreign)), (0, size)]
    assert {None, False} <= set(read_damaged(foreign, model, ranges, 500))


@pytest.mark.parametrize("value", [np.arange(6.0).reshape(2, 3).T, np.float32(3), np.ones((2, 2), ml_dtypes.bfloat16)])
def test_any_array_comes_back_as_it_was(tmp_path, value):
    """In any order in memory, without dimensions, in bfloat16."""
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": np.asarray(value)}, {"of": "a test"})
    file = read_weights(path)
    np.testing.assert_array_equal(file.tensors["a"], value, strict=True)
    assert file.metadata == {"of": "a test"}


def test_a_file_that_cannot_be_written_leaves_the_old_one(own):
    before, tensors = own.read_bytes(), read_weights(own).tensors
    with disk_with(len(before) // 2):
        message = refusal(write_safetensors, own, tensors)
    assert message == f"cannot write {own}: File too large; what was there before is as it was"
    assert own.read_bytes() == before
    assert list(own.parent.iterdir()) == [own]


def test_a_file_needs_a_directory_and_a_name(tmp_path):
    assert f"there is no directory {tmp_path / 'no'}" in refusal(write_safetensors, tmp_path / "no" / "a", {})
    assert f"{tmp_path} is a directory" in refusal(write_safetensors, tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_what_pytorch_s_wrappers_put_before_the_names_is_dropped(tmp_path, model):
    tensors = to_state_dict(model, "ecanet")
    for i, prefix in enumerate(("module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.")):
        path = tmp_path / f"{i}.SAFETENSORS"
        write_safetensors(path, {prefix + key: value for key, value in tensors.items()})
        assert load_pretrained(path).architecture == model.architecture


def test_negative_variances_are_refused(tmp_path, model):
    tensors = to_state_dict(model, NATIVE)
    tensors["bn1.var"] = -tensors["bn1.var"]
    write_safetensors(tmp_path / "m.safetensors", tensors, own_metadata(model))
    assert refusal(load_pretrained, tmp_path / "m.safetensors").endswith(": variances below 0: bn1.var")


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        (("*",), "skip: * leaves nothing of the weights; expected less, such as 'fc.*'"),
        ("fc.*", "skip: expected a tuple of patterns, got 'fc.*': write ('fc.*',)"),
    ],
)
def test_what_cannot_be_meant_by_skip_is_refused(model, skip, message):
    assert refusal(from_state_dict, to_state_dict(model, "ecanet"), skip=skip) == message


def test_a_file_that_may_not_be_read_is_not_called_damaged(own, monkeypatch):
    def refuse(path, *args):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    assert refusal(read_weights, own) == f"{own} cannot be read: Permission denied"


def test_a_pipe_is_no_weight_file(tmp_path):
    os.mkfifo(tmp_path / "m.safetensors")
    assert "m.safetensors is no regular file but a pipe" in refusal(read_weights, tmp_path / "m.safetensors")
