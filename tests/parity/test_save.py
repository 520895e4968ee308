"""What `eca_jax.save` writes in timm's form is what timm's `create_model` makes of it."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

import eca_jax  # noqa: E402
from eca_jax.convert.leaves import leaves  # noqa: E402
from eca_jax.data.preprocess import PreprocessConfig  # noqa: E402

pytestmark = pytest.mark.parity


def test_timm_computes_the_same_logits(tmp_path, rng):
    model = nnx.eval_shape(lambda: eca_jax.create_model("ecaresnet26t", num_classes=5, rngs=nnx.Rngs(0)))
    for leaf in leaves(model):  # statistics too
        low, high = (0.5, 1.5) if leaf.name in ("var", "scale") else (-0.1, 0.1)
        leaf.variable.set_value(jnp.asarray(rng.uniform(low, high, leaf.variable.shape), jnp.float32))
    model.preprocess = PreprocessConfig(image_size=64, eval_resize=73, interpolation="bicubic")
    line = eca_jax.save(model, tmp_path / "timm", "timm", class_names=tuple("abcde"))
    assert line.endswith("/timm (README.md, config.json, model.safetensors)")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert theirs.pretrained_cfg["label_names"] == list("abcde")
    assert timm.data.resolve_data_config(model=theirs)["input_size"] == [3, 64, 64]
    images = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        want = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    model.eval()
    assert np.ptp(want) > 0.01
    np.testing.assert_allclose(nnx.jit(model)(images), want, rtol=0, atol=2e-5 * np.abs(want).max())
