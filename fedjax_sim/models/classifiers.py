"""Classifiers by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fedjax_sim import _memory, _validate
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.models.layers import Conv, Dense, Norm, max_pool
from fedjax_sim.models.recurrent import CharLSTM
from fedjax_sim.models.resnet import ResNet
from fedjax_sim.models.transformer import ViT, patch_side


class Model(NamedTuple):
    """Initial parameters and the functions that a federation needs of them.

    A batch is `{"inputs": [B, ...], "labels": int32[B]}`; uint8 inputs are divided by 255, unless they are codes.
    """

    params: PyTree
    logits_fn: Callable[[PyTree, Array], Array]  # (params, inputs [B, ...]) -> f32[B, classes]
    loss_fn: Callable[[PyTree, PyTree, Array], Array]  # (params, batch, key) -> f32[B], cross-entropy in nats
    metric_fn: Callable[[PyTree, PyTree], dict[str, Array]]  # (params, batch) -> {"accuracy", "loss"}, each f32[B]
    whole: Callable[[PyTree], PyTree] = lambda params: params  # all parameters, where only some are trained


class MLP(nnx.Module):
    """Dense layers with ReLU between them; without hidden layers, logistic regression."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], classes: int, *, rng: np.random.Generator):
        widths = (inputs, *hidden, classes)
        self.depth = len(widths) - 1
        for i in range(self.depth):  # logistic regression is convex: it starts at zero, whatever the seed
            setattr(self, f"layer{i}", Dense(widths[i], widths[i + 1], rng=rng if hidden else None))

    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for i in range(self.depth):
            x = getattr(self, f"layer{i}")(x)
            x = nnx.relu(x) if i < self.depth - 1 else x
        return x


class NormalisedMLP(nnx.Module):
    """An MLP whose hidden layers are normalised over their units before ReLU (Ba et al. 2016), with scale and shift."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], classes: int, *, rng: np.random.Generator):
        widths = (inputs, *hidden, classes)
        self.depth = len(widths) - 1
        for i in range(self.depth):
            setattr(self, f"layer{i}", Dense(widths[i], widths[i + 1], rng=rng))
        for i, width in enumerate(hidden):
            setattr(self, f"layer{i}_norm", Norm(width))

    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for i in range(self.depth - 1):
            x = nnx.relu(getattr(self, f"layer{i}_norm")(getattr(self, f"layer{i}")(x)))
        return getattr(self, f"layer{self.depth - 1}")(x)


class CNN(nnx.Module):
    """Two convolutions of `size`, each with ReLU and 2 x 2 max-pooling, one hidden layer, and the output."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        channels: tuple[int, int],
        hidden: int,
        classes: int,
        *,
        size: int,
        rng: np.random.Generator,
    ):
        height, width, depth = input_shape
        self.layer0 = Conv(depth, channels[0], size, rng=rng)
        self.layer1 = Conv(channels[0], channels[1], size, rng=rng)
        self.layer2 = Dense((height // 4) * (width // 4) * channels[1], hidden, rng=rng)
        self.layer3 = Dense(hidden, classes, rng=rng)

    def __call__(self, x: Array) -> Array:
        x = max_pool(nnx.relu(self.layer0(x)))
        x = max_pool(nnx.relu(self.layer1(x)))
        return self.layer3(nnx.relu(self.layer2(x.reshape(x.shape[0], -1))))


MODELS = {
    "logistic": "multinomial logistic regression",
    "mlp": "dense layers of the given hidden widths, ReLU between them (200, 200 is McMahan et al.'s 2NN)",
    "mlp_norm": "the same with layer normalisation, whose scales and shifts FedBN keeps on the clients",
    "cnn": "McMahan et al. 2017: convolutions 5 x 5 of 32 and 64, hidden layer of 512; 1,663,370 parameters on MNIST",
    "cnn_small": "convolutions 3 x 3 of 16 and 32, hidden layer of 64",
    "resnet": "ResNet-8 with group normalisation, 16 to 64 channels; 75,530 parameters on CIFAR-10",
    "vit": "a vision transformer of width 64, four layers, four heads, patches of 4 x 4 pixels",
    "char_lstm": "McMahan et al. 2017 on text: an embedding of 8, two LSTM layers of 256 units",
}
BYTES = 256  # codes of uint8
# what each takes: "numbers" of any shape, "images" [height, width, channels], or "codes" [length] of a text
INPUTS = {"logistic": "numbers", "mlp": "numbers", "mlp_norm": "numbers", "cnn": "images", "cnn_small": "images",
          "resnet": "images", "vit": "images", "char_lstm": "codes"}  # fmt: skip


def fitting(shape: tuple[int, ...], dtype: np.dtype | None, vocabulary: int | None) -> list[str]:
    """The models that take such inputs.

    Args:
      shape: of one example.
      dtype: of the inputs; None where it is not known.
      vocabulary: number of codes, where they are such.
    """
    image = len(shape) == 3 and min(shape[:2]) >= 4
    whole = dtype is None or dtype.kind in "iu"
    text = len(shape) == 1 and whole and (vocabulary is not None or dtype in (None, np.uint8))
    takes = {"numbers": vocabulary is None, "images": image and vocabulary is None, "codes": text}
    return [name for name, kind in INPUTS.items() if takes[kind]]


def _check_inputs(name: str, shape: tuple[int, ...], dtype: np.dtype | None, vocabulary: int | None) -> None:
    names = fitting(shape, dtype, vocabulary)
    if name in names:
        return
    given = f"{'' if dtype is None else dtype}{list(shape)}"
    what = {"numbers": "numbers", "images": "images [height, width, channels] of at least 4 x 4",
            "codes": "codes of a text, whole numbers [length] below a vocabulary"}[INPUTS[name]]  # fmt: skip
    codes = "" if vocabulary is None else f", codes below {vocabulary}"
    fix = f"take {', '.join(names)}" if names else "give a vocabulary only with whole numbers [length]"
    if INPUTS[name] == "codes" and len(shape) == 1 and dtype is not None and dtype.kind in "iu":
        fix += "; or give the number of codes, from_clients(..., vocabulary=...) say, if they are such"
    raise _validate.InputError(f"model.name: {name} takes {what}, and inputs are {given}{codes}; {fix}")


def _module(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    hidden: tuple[int, ...],
    rng: np.random.Generator,
    vocabulary: int,
) -> nnx.Module:
    if name in ("logistic", "mlp"):
        return MLP(int(np.prod(shape)), hidden if name == "mlp" else (), classes, rng=rng)
    if name == "mlp_norm":
        return NormalisedMLP(int(np.prod(shape)), hidden, classes, rng=rng)
    if name == "char_lstm":
        return CharLSTM(vocabulary, classes, padded=vocabulary == BYTES, rng=rng)
    image = (shape[0], shape[1], shape[2])
    if name == "resnet":
        return ResNet(image[2], classes, rng=rng)
    if name == "vit":
        if patch_side(*image[:2]) is None:
            raise _validate.InputError(
                f"model vit: {image[0]} x {image[1]} pixels have no patches of 4, 7 or 2; use cnn"
            )
        return ViT(image, classes, rng=rng)
    if name == "cnn":
        return CNN(image, (32, 64), 512, classes, size=5, rng=rng)
    return CNN(image, (16, 32), 64, classes, size=3, rng=rng)


def build_model(
    name: str,
    input_shape: tuple[int, ...],
    classes: int,
    *,
    hidden: tuple[int, ...] = (200, 200),
    seed: int = 0,
    dtype: np.dtype | type | str | None = None,
    vocabulary: int | None = None,
) -> Model:
    """A classifier by name, one of `MODELS`.

    Its products and convolutions are float32 at JAX's default precision: on a CPU that is float32 throughout, while
    NVIDIA GPUs round the operands to TF32, with 10 bits of mantissa, and TPUs to bfloat16. What is traced under `with
    jax.default_matmul_precision("float32")` is float32 there, too, and several times slower where products bound it.

    Args:
      name: which.
      input_shape: of one example, [features], [height, width, channels], or [length] of a text.
      classes: number of classes, at least 2.
      hidden: widths of the hidden layers, for "mlp" and "mlp_norm".
      seed: of the initial parameters.
      dtype: of the inputs, where it is known; "char_lstm" takes whole numbers alone.
      vocabulary: number of codes, where inputs are codes of characters or words; "char_lstm", which alone takes such,
        has an embedding of each. By default the 256 of bytes, of which zeros at the end pad a text.

    Raises:
      InputError: an unknown name, a size out of range, or inputs that the model does not fit; from "char_lstm" also
        when it is applied to other inputs than whole numbers.
    """
    _validate.one_of("model", name, MODELS)
    _validate.whole("classes", classes, least=2)
    _validate.whole("seed", seed, least=0)
    for field, sizes in (("input_shape", input_shape), ("hidden", hidden)):
        if not isinstance(sizes, (tuple, list)):
            raise _validate.InputError(f"{field}: {_validate.shown(sizes)} is no tuple of sizes; give one")
        for size in sizes:
            _validate.whole(field, size)
    if vocabulary is not None:
        _validate.whole("vocabulary", vocabulary, least=2)
    _check_inputs(name, tuple(input_shape), None if dtype is None else np.dtype(dtype), vocabulary)
    codes = vocabulary or BYTES
    _refuse_huge(name, tuple(input_shape), classes, tuple(hidden), codes)
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(_module(name, tuple(input_shape), classes, tuple(hidden), rng, codes))
    prepared = _codes if INPUTS[name] == "codes" else _scaled  # codes are no intensities

    def logits_fn(params: PyTree, inputs: Array) -> Array:
        return nnx.merge(graph, nnx.State(params))(prepared(inputs))

    return from_logits(nnx.to_pure_dict(state), logits_fn)


class _Undrawn:
    """Stands for a generator where only shapes are asked for."""

    def standard_normal(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        return jnp.zeros(shape, dtype)

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> Array:
        return jnp.zeros(shape)


def _refuse_huge(name: str, shape: tuple[int, ...], classes: int, hidden: tuple[int, ...], vocabulary: int) -> None:
    """The parameters fit in memory twice, for a client trains a copy of its own."""
    undrawn: Any = _Undrawn()
    leaves = jax.eval_shape(lambda: nnx.state(_module(name, shape, classes, hidden, undrawn, vocabulary)))
    count = sum(leaf.size for leaf in jax.tree.leaves(leaves))
    fix = f"take {'narrower hidden layers' if hidden and name.startswith('mlp') else 'fewer classes or inputs'}"
    _memory.require(f"model {name}: {count:,} parameters for {classes:,} classes need", 8 * count, fix)


def _codes(inputs: Array) -> Array:
    if not jnp.issubdtype(inputs.dtype, jnp.integer):
        raise _validate.InputError(
            f"model.name: char_lstm takes codes of a text, whole numbers, and inputs are {inputs.dtype}; take mlp"
        )
    return inputs


def _scaled(inputs: Array) -> Array:
    return inputs.astype(jnp.float32) / 255 if inputs.dtype == jnp.uint8 else inputs.astype(jnp.float32)


def from_logits(params: PyTree, logits_fn: Callable[[PyTree, Array], Array]) -> Model:
    """The cross-entropy loss, and accuracy and loss as metrics, around any function that returns logits."""

    def cross_entropy(params: PyTree, batch: PyTree) -> tuple[Array, Array]:
        logits = logits_fn(params, batch["inputs"])
        # one-hot labels, for the gradient of picking one logit is a scatter, a kernel more in each step
        return optax.softmax_cross_entropy(logits, jax.nn.one_hot(batch["labels"], logits.shape[-1])), logits

    def metrics(params: PyTree, batch: PyTree) -> dict[str, Array]:
        loss, logits = cross_entropy(params, batch)
        return {"accuracy": (logits.argmax(-1) == batch["labels"]).astype(jnp.float32), "loss": loss}

    def loss_fn(params: PyTree, batch: PyTree, key: jax.Array) -> Array:
        return cross_entropy(params, batch)[0]

    return Model(params, logits_fn, loss_fn, metrics)
