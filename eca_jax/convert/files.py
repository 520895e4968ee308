"""Weight files, which are not trusted: safetensors, and PyTorch's with `weights_only=True`; nothing in them is run."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import stat
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from eca_jax.errors import EcaJaxError, expect_text

SAFETENSORS = (".safetensors",)
TORCH = (".pth", ".pt", ".tar", ".bin")
ENDINGS = (*SAFETENSORS, *TORCH)
WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts put the state dict."""


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """What a file holds."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of our own safetensors: what the model is."""
    momentum: list[np.ndarray] | None = None
    """SGD's buffers, in the order of the optimiser."""
    epoch: int | None = None
    """Epochs done."""


def read_weights(path: str | os.PathLike) -> WeightFile:
    """A `.safetensors`, `.pth`, `.pth.tar`, `.pt` or `.bin` file.

    Raises:
      EcaJaxError: no such file, none of these kinds, damaged, or it holds more than tensors.
    """
    path = pathlib.Path(path)
    expect_text("weights", path)
    try:
        kind, size = path.stat().st_mode, path.stat().st_size
        if stat.S_ISDIR(kind):
            raise EcaJaxError(f"{path} is a directory; expected a weight file that ends in {', '.join(ENDINGS)}")
        if not stat.S_ISREG(kind):
            raise EcaJaxError(f"{path} is no regular file but a pipe, a socket or a device; give a weight file")
        if path.suffix.lower() not in ENDINGS:
            raise EcaJaxError(f"{path}: expected a weight file that ends in {', '.join(ENDINGS)}")
        if size == 0:
            raise EcaJaxError(f"{path} is empty; get it again")
        with path.open("rb") as file:
            file.read(1)
    except FileNotFoundError:
        raise EcaJaxError(f"there is no file {path}") from None
    except OSError as error:  # which the parsers below would call damage
        raise EcaJaxError(f"{path} cannot be read: {error.strerror}") from error
    return _read_safetensors(path) if path.suffix.lower() in SAFETENSORS else _read_torch(path)


def _read_safetensors(path: pathlib.Path) -> WeightFile:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="np") as file:
            tensors = {key: file.get_tensor(key) for key in list(file.keys())}
            metadata = file.metadata() or {}
        own = json.loads(metadata.get("eca_jax", "{}"))
        if not isinstance(own, dict):
            raise ValueError("its metadata of eca_jax is no JSON object")
    except Exception as error:  # whatever the parser says of damaged bytes
        raise EcaJaxError(f"{path} is damaged or no safetensors file ({_short(error)}); get it again") from error
    if own and metadata.get("sha256") != digest(tensors, metadata["eca_jax"]):
        raise EcaJaxError(f"{path} is damaged: it has not the SHA-256 that was written with it; get it again")
    return WeightFile(tensors, own)


def _read_torch(path: pathlib.Path) -> WeightFile:
    torch = import_torch(f"reading {path}")
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            _check_beginning(path)
            with path.open("rb") as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
                if file.read(1):  # PyTorch takes what the file's list of storages forgets for read
                    raise ValueError("bytes are left over")
    except Exception as error:  # whatever the parser says of damaged bytes, or of more than tensors
        if "weights_only" in str(error):  # PyTorch's advice, to allow it, is not passed on
            asked = re.search(r"GLOBAL (\S{1,80})", str(error))
            named = f"it asks for {asked[1]!r}" if asked else "it is damaged or holds more than tensors"
            reason = f"{named}, and nothing of it was executed; get it again, or save the state dict alone"
        else:
            reason = f"it is damaged or no PyTorch file ({_short(error)}); get it again"
        raise EcaJaxError(f"{path} cannot be read: {reason}") from None
    if not isinstance(content, Mapping):
        raise EcaJaxError(f"{path} holds a {type(content).__name__}; expected a state dict")
    inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    tensors = {str(key): _to_numpy(path, str(key), value) for key, value in inner.items()}
    epoch = content.get("epoch") if inner is not content else None
    momentum = _momentum(path, content.get("optimizer")) if inner is not content else None
    return WeightFile(tensors, momentum=momentum, epoch=epoch if isinstance(epoch, int) else None)


def _check_beginning(path: pathlib.Path) -> None:
    """Of a file in the legacy format, a pickle; of others the parser gives odd reasons."""
    with path.open("rb") as file:
        first = file.read(9)
    if first[8:] == b"{":
        raise ValueError("its content is of safetensors: call it .safetensors")
    if not first.startswith(b"\x80"):
        raise ValueError(f"it begins with {first!r}")


def _check_zip(path: pathlib.Path) -> None:
    """What PyTorch does not: the checksums, and that nothing is compressed, which could expand to any size."""
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("compressed records, which PyTorch does not write")
        if broken := archive.testzip():
            raise ValueError(f"the checksum of {broken} is wrong")


def _to_numpy(path: pathlib.Path, key: str, value: Any) -> np.ndarray:
    import torch

    if value is None or not isinstance(value, torch.Tensor):
        what = "None" if value is None else f"a {type(value).__name__}"
        raise EcaJaxError(f"{path}: {key!r} is {what}; expected {'a state dict' if key in WRAPPERS else 'a tensor'}")
    if value.layout is not torch.strided:
        raise EcaJaxError(f"{path}: {key!r} is a tensor of the layout {value.layout}; expected a dense one")
    # A view of few numbers may claim any shape: what is not in the file is not made up.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise EcaJaxError(f"{path}: {key!r} claims the shape {tuple(value.shape)}, which is more than the file holds")
    try:
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy(force=True)
    except (TypeError, RuntimeError) as error:  # quantised, of 8 bits, on the device `meta`
        raise EcaJaxError(f"{path}: {key!r} holds {value.dtype}, which NumPy cannot ({_short(error)})") from error


def _momentum(path: pathlib.Path, optimizer: Any) -> list[np.ndarray] | None:
    """The buffers of torch.optim.SGD's state dict; None where there are none."""
    try:
        order = [i for group in optimizer["param_groups"] for i in group["params"]]
        buffers = [optimizer["state"][i]["momentum_buffer"] for i in order]
    except (LookupError, TypeError, ValueError):
        return None
    if any(buffer is None for buffer in buffers):  # of a run without momentum
        return None
    return [_to_numpy(path, f"momentum of parameter {i}", buffer) for i, buffer in zip(order, buffers, strict=True)]


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], own: dict | None = None) -> None:
    """Writes the whole file or none; `own` goes into the metadata with a checksum, and comes back by `read_weights`."""
    write(path, to_safetensors(tensors, own))


def to_safetensors(tensors: Mapping[str, np.ndarray], own: dict | None = None) -> bytes:
    """The bytes of such a file."""
    import safetensors.numpy

    metadata = {"format": "pt"}
    if own is not None:
        text = json.dumps(own)
        metadata = {"eca_jax": text, "sha256": digest(tensors, text)}
    # safetensors writes the memory of an array in whatever order it is.
    return safetensors.numpy.save({key: np.asarray(value, order="C") for key, value in tensors.items()}, metadata)


def write_torch(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Writes the whole file or none; NumPy arrays, also in nested dicts, become tensors."""
    torch = import_torch(f"writing {path}")

    def tensors(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: tensors(item) for key, item in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype.name == "bfloat16":  # an extension of NumPy that PyTorch does not know
            return torch.from_numpy(value.view(np.uint16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(value))

    buffer = io.BytesIO()
    torch.save(tensors(content), buffer)
    write(path, buffer.getbuffer())


def digest(tensors: Mapping[str, np.ndarray], text: str) -> str:
    """SHA-256 over the metadata and the tensors' names, types, shapes and bytes."""
    result = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        value = tensors[key]
        result.update(f"{key} {value.dtype} {value.shape}\n".encode())
        result.update(value.tobytes())
    return result.hexdigest()


def write(path: str | os.PathLike, data: bytes | bytearray | memoryview) -> None:
    """Writes the whole file or none: under another name beside `path`, which it takes when all is on the disk."""
    path, temporary = pathlib.Path(path), _expect_place(path)
    try:
        _write_through(temporary, data)
        os.replace(temporary, path)
    except OSError as error:
        raise EcaJaxError(f"cannot write {path}: {error.strerror}; what was there before is as it was") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_writable(path: str | os.PathLike) -> None:
    """Refuses a place where `write` cannot write a file, for what takes long to compute."""
    temporary = _expect_place(path)
    try:
        temporary.touch()
    except OSError as error:
        raise EcaJaxError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _expect_place(path: str | os.PathLike) -> pathlib.Path:
    """The temporary file beside a file that is to be written, where that is a place for one."""
    path = pathlib.Path(path)
    if os.path.isdir(path):
        raise EcaJaxError(f"{path} is a directory; expected the name of a file to write")
    if os.path.exists(path) and not os.path.isfile(path):  # renaming would put a file in the place of /dev/null
        raise EcaJaxError(f"{path} is no regular file but a pipe, a socket or a device; expected the name of a file")
    if not os.path.isdir(path.parent):
        raise EcaJaxError(f"there is no directory {path.parent} to write {path.name} into")
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def check_new_directory(path: str | os.PathLike) -> None:
    """Refuses a place where `write_directory` cannot make a new directory."""
    path = pathlib.Path(os.path.abspath(path))
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        what = "is not empty" if path.is_dir() else "is a file"
        raise EcaJaxError(f"{path} {what}; expected the name of a new directory")
    if not path.parent.is_dir():
        raise EcaJaxError(f"there is no directory {path.parent} to make {path.name} in")


def write_directory(path: str | os.PathLike, files: Mapping[str, bytes]) -> None:
    """Makes a directory with all of these files or none: under another name, which changes when all is on the disk."""
    check_new_directory(path)
    path = pathlib.Path(os.path.abspath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        for name, data in files.items():
            _write_through(temporary / name, data)
        os.replace(temporary, path)
    except OSError as error:
        raise EcaJaxError(f"cannot write {path}: {error.strerror}; nothing was written") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_through(path: pathlib.Path, data: bytes | bytearray | memoryview) -> None:
    """Returns when the bytes are on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def import_torch(what: str) -> Any:
    """PyTorch, at the edge alone."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise EcaJaxError(f"{what} needs PyTorch: pip install 'eca-jax[torch]' (safetensors files do not)") from error
    return torch


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
