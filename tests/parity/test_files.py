"""PyTorch's weight files, as zip and in the legacy format: damaged, forged, or of something else."""

import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")

from eca_jax import create_model, load_pretrained  # noqa: E402
from eca_jax.convert.files import read_weights, write_safetensors, write_torch  # noqa: E402
from eca_jax.convert.state_dict import to_state_dict  # noqa: E402
from tests.damage import disk_with, peak_memory, read_damaged, refusal  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning"),  # of damaged files
]
both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@pytest.fixture(scope="module")
def model():
    return create_model("eca_resnet18", num_classes=10, width_multiplier=0.125, small_stem=True, rngs=nnx.Rngs(0))


@pytest.fixture
def tensors(model):
    return {key: torch.from_numpy(value.copy()) for key, value in to_state_dict(model, "ecanet").items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def save(content, path, zipped) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "raw pickle"])
def test_code_in_a_file_is_named_and_not_run(tmp_path, path, tensors, kind):
    touched = tmp_path / "touched"
    content = {**tensors, "x": Touch(touched)}
    if kind == "raw pickle":
        path.write_bytes(pickle.dumps({"x": Touch(touched)}, protocol=2))
    else:
        save(content, path, kind == "zip")
    message = refusal(load_pretrained, path)
    assert f"it asks for '{os.system.__module__}.system', and nothing of it was executed" in message
    assert "weights_only" not in message
    assert not touched.exists()
    os.system(f"touch {touched}")
    assert touched.exists()  # it would have been seen


@both_formats
@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ([torch.ones(2)], "holds a list; expected a state dict"),
        (torch.nn.Linear(2, 2), "it asks for 'torch.nn.modules.linear.Linear'"),
        ({"state_dict": {"a": {"b": 1}}}, "'a' is a dict; expected a tensor"),
        ({"state_dict": None}, "'state_dict' is None; expected a state dict"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is a tensor of the layout torch.sparse_coo; expected a dense one"),
        ({"a": torch.ones(2, device="meta")}, "'a' holds torch.float32"),
    ],
    ids=["list", "module", "nested", "nothing", "sparse", "no data"],
)
def test_what_is_no_state_dict_is_named(path, zipped, content, answer):
    save(content, path, zipped)
    assert answer in refusal(read_weights, path)


def test_types_that_numpy_has_not_are_named(path):
    save({"a": torch.ones(2).to(torch.float8_e4m3fn)}, path, True)
    assert "'a' holds torch.float8_e4m3fn" in refusal(read_weights, path)


@both_formats
def test_one_number_that_claims_to_be_a_terabyte_costs_nothing(path, zipped):
    save({"fc.weight": torch.ones(1).expand(500_000, 500_000)}, path, zipped)
    before = peak_memory()
    assert "'fc.weight' claims the shape (500000, 500000)" in refusal(read_weights, path)
    assert peak_memory() < 1.2 * before


def test_compressed_records_are_refused(path):
    """PyTorch writes none, and would expand one to any size."""
    save({"a": torch.zeros(1000)}, path, True)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    assert torch.load(path, weights_only=True)["a"].shape == (1000,)
    assert "compressed records" in refusal(read_weights, path)


def test_a_legacy_file_that_forgets_a_storage_is_damaged(path):
    """PyTorch gives whatever was in memory."""
    save({"a": torch.ones(2), "b": torch.ones(3)}, path, False)
    with path.open("rb") as file:
        torch.load(file, weights_only=True)
        end = file.tell()
    data = path.read_bytes()
    assert end == len(data)
    start = data.rindex(b"\x80\x02]")  # the list of storages
    keys = pickle.loads(data[start:])
    first = data.index(b".", start) + 1
    path.write_bytes(data[:start] + pickle.dumps(keys[:1], protocol=2) + data[first:])
    torch.load(path, weights_only=True)
    assert "bytes are left over" in refusal(read_weights, path)


def test_a_zip_that_is_damaged_is_refused_or_the_same(path, tensors, model):
    save(tensors, path, True)
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
        (pickled,) = (info for info in archive.infolist() if info.filename.endswith("data.pkl"))
    size = path.stat().st_size
    ranges = [(0, size), (directory, size), (0, pickled.file_size), (directory - 1000, directory)]
    outcomes = read_damaged(path, model, ranges, 500)
    assert False not in outcomes
    assert None in outcomes


def test_a_legacy_file_that_is_damaged_is_refused_or_has_the_right_shapes(path, tensors, model):
    """It has no checksum: flipped bits may load."""
    save(tensors, path, False)
    size, end = path.stat().st_size, path.read_bytes().rindex(b"\x80\x02]")
    ranges = [(0, size), (0, end), (0, 200), (end, end + 2000)]
    assert {None, False} <= set(read_damaged(path, model, ranges, 500))


def test_a_run_without_momentum_has_none(path):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    save({"state_dict": {"a": weight}, "optimizer": optimizer.state_dict(), "epoch": 3}, path, True)
    file = read_weights(path)
    assert (file.momentum, file.epoch) == (None, 3)


@pytest.mark.parametrize("value", [np.arange(6.0).reshape(2, 3).T, np.float32(3), np.ones((2, 2), ml_dtypes.bfloat16)])
def test_any_array_is_written_as_it_is(path, value):
    write_torch(path, {"state_dict": {"a": np.asarray(value)}, "epoch": 1})
    written = torch.load(path, weights_only=True)["state_dict"]["a"]
    assert str(written.dtype) == f"torch.{np.asarray(value).dtype}"
    np.testing.assert_array_equal(written.double().numpy(), np.asarray(value, np.float64), strict=True)


def test_a_file_that_cannot_be_written_leaves_the_old_one(path, model):
    write_torch(path, to_state_dict(model, "ecanet"))
    before = path.read_bytes()
    with disk_with(len(before) // 2):
        message = refusal(write_torch, path, to_state_dict(model, "ecanet"))
    assert message == f"cannot write {path}: File too large; what was there before is as it was"
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_what_is_called_a_pytorch_file_and_is_none_is_named(tmp_path):
    path = tmp_path / "a.pth"
    path.write_text("<!doctype html>")
    assert "it is damaged or no PyTorch file (ValueError: it begins with b'<!doctype')" in refusal(read_weights, path)
    write_safetensors(path, {"a": np.ones(2, np.float32)})
    assert "its content is of safetensors: call it .safetensors" in refusal(read_weights, path)
