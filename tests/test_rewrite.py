"""Convolutions, max-pooling and small products of the clients' computation in quick forms: the same numbers."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax import lax

import fedjax_sim as fs
from fedjax_sim.core import forms
from fedjax_sim.core.rewrite import quick

KEY = jax.random.key(0)


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def assert_same(function, *given, arranged=True, tolerance=2e-5):
    """`function` and its quick form agree, relative to the largest entry; returns the quick form's program."""
    rewritten = quick(function, arranged=arranged)
    for want, got in zip(*(jax.tree.leaves(jax.jit(f)(*given)) for f in (function, rewritten)), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        want, got = (np.asarray(x, np.float32) for x in (want, got))
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())
    return str(jax.make_jaxpr(rewritten)(*given))


def slow_convolutions(program):
    """How many convolutions of a program are in another arrangement than [batch, space, channels], [space, I, O]."""
    found = re.findall(r"lhs_spec=(\(.*?\)), rhs_spec=(\(.*?\)), out_spec=(\(.*?\))", program)
    quick_ones = {(f"{s}", f"{r}", f"{s}") for s, r in (((0, 2, 1), (2, 1, 0)), ((0, 3, 1, 2), (3, 2, 0, 1)))}
    groups = [int(n) for n in re.findall(r"group_count=(\d+)", program)]
    return sum(spec not in quick_ones for spec in found) + sum(n > 1 for n in groups)


# (layout, strides, padding, dilation of the image, of the window, groups of channels, groups of the batch)
CONVOLUTIONS = {
    "plain": ("NHWC HWIO NHWC", 1, "SAME", 1, 1, 1, 1),
    "torch": ("NCHW OIHW NCHW", 2, "VALID", 1, 1, 1, 1),
    "strange": ("HCNW IHOW WNCH", 1, "SAME", 1, 2, 1, 1),
    "transposed": ("NHWC HWIO NHWC", 1, 2, 2, 1, 1, 1),
    "everything": ("NHWC HWIO NHWC", 2, 3, 3, 2, 2, 1),
    "cropped": ("NHWC HWIO NHWC", 1, -1, 1, 1, 1, 1),
    "line": ("NWC WIO NWC", 2, 2, 1, 1, 1, 1),
    "volume": ("NDHWC DHWIO NDHWC", 1, "SAME", 1, 1, 1, 1),
    "strided volume": ("NCDHW OIDHW NCDHW", 2, 1, 1, 1, 2, 1),
    "depthwise": ("NHWC HWIO NHWC", 1, "SAME", 1, 1, 4, 1),
    "wide groups": ("NHWC HWIO NHWC", 1, "SAME", 1, 1, 2, 1),
    "groups of the batch": ("NHWC HWIO NHWC", 1, "SAME", 1, 1, 1, 2),
}


def convolution(name):
    """A convolution, its operands, and the gradient that comes back."""
    layout, stride, padding, dilation, spread, groups, batches = CONVOLUTIONS[name]
    axes = len(layout.split()[0]) - 2
    sizes = dict(zip("HWD", (7, 6, 5), strict=True)) | {"N": 4, "C": 4}
    window = dict(zip("HWD", (3, 2, 3), strict=True)) | {"I": 4 // groups, "O": 32 if name == "wide groups" else 4}
    x, kernel = (
        normal(*(kind[axis] for axis in names), seed=seed)
        for seed, (names, kind) in enumerate(zip(layout.split()[:2], (sizes, window), strict=True))
    )
    padding = padding if isinstance(padding, str) else [(padding, padding + 1)] * axes
    function = partial(
        lax.conv_general_dilated, window_strides=(stride,) * axes, padding=padding, lhs_dilation=(dilation,) * axes,
        rhs_dilation=(spread,) * axes, dimension_numbers=tuple(layout.split()), feature_group_count=groups,
        batch_group_count=batches,
    )  # fmt: skip
    return function, x, kernel, normal(*jax.eval_shape(function, x, kernel).shape, seed=2)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_and_its_gradients(name):
    function, *given = convolution(name)

    def both(x, kernel, dy):
        value, pull = jax.vjp(function, x, kernel)
        return value, pull(dy)

    assert slow_convolutions(assert_same(both, *given)) == 0
    assert "conv_general_dilated" not in assert_same(both, *given, arranged=False)


@pytest.mark.parametrize("arranged", [True, False])
def test_gradients_of_each_example_and_lanes_of_different_kernels(arranged):
    function, x, kernel, _ = convolution("plain")

    def of_one(kernel, x):
        return jax.grad(lambda k: jnp.square(function(x[None], k)).sum())(kernel)

    rewritten = assert_same(jax.vmap(of_one, (None, 0)), kernel, x, arranged=arranged)
    assert slow_convolutions(rewritten) == 0
    kernels = normal(3, *kernel.shape, seed=4)

    def lanes(kernels, x):
        return jax.vmap(jax.grad(lambda k: jnp.square(function(x, k)).sum()))(kernels)

    assert slow_convolutions(assert_same(lanes, kernels, x, arranged=arranged)) == 0
    outside = jax.vmap(quick(jax.grad(lambda k: jnp.square(function(x, k)).sum()), arranged=arranged))
    np.testing.assert_allclose(outside(kernels), lanes(kernels, x), rtol=2e-4, atol=1e-3)


def test_other_types_of_numbers():
    x, kernel = normal(2, 6, 6, 3, dtype=jnp.bfloat16), normal(3, 3, 3, 4, dtype=jnp.bfloat16)
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    half = partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", **numbers)
    assert_same(half, x, kernel, tolerance=1e-2)
    assert_same(partial(half, preferred_element_type=jnp.float32), x, kernel)
    depthwise = partial(half, feature_group_count=3, preferred_element_type=jnp.float32)
    assert_same(depthwise, x, normal(3, 3, 1, 3, dtype=jnp.bfloat16))
    whole = jnp.ones((1, 4, 4, 1), jnp.int32), jnp.ones((2, 2, 1, 1), jnp.int32)
    assert "optimization_barrier" not in assert_same(half, *whole)  # left as it is
    assert f"precision={lax.Precision.HIGHEST!s}" in assert_same(partial(half, precision="highest"), x, kernel).replace(
        "(Precision.HIGHEST, Precision.HIGHEST)", "HIGHEST"
    ).replace("Precision.HIGHEST", "HIGHEST")


def test_it_reaches_whatever_programs_are_nested_in():
    _, x, kernel, _ = convolution("torch")
    other = partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME",
                    dimension_numbers=("NCHW", "OIHW", "NCHW"))  # fmt: skip

    @jax.custom_jvp
    def forward(k):
        return other(x, k)

    @jax.custom_vjp
    def backward(k):
        return other(x, k)

    forward.defjvp(lambda primals, tangents: (forward(*primals), other(x, *tangents)))
    backward.defvjp(lambda k: (other(x, k), k), lambda k, dy: (7 * k,))

    def everything(k, trips):
        total = jax.jit(other)(x, k).sum()
        total += lax.scan(lambda c, _: (c + other(x, k).sum(), None), 0.0, None, length=2)[0]
        total += lax.cond(trips > 1, lambda: other(x, k).sum(), lambda: 0.0)
        total += jax.checkpoint(lambda k: jnp.sin(other(x, k)).sum())(k)
        return total + forward(k).sum() + backward(k).sum()

    def with_loop(k, trips):
        return lax.fori_loop(0, trips, lambda _, k: k - 1e-3 * jax.grad(everything)(k, trips), k), everything(k, trips)

    assert slow_convolutions(assert_same(with_loop, kernel, jnp.int32(3))) == 0


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2), (2, 3), (3, 1)])
def test_max_pooling_and_its_gradient_take_the_first_of_equal_entries(window, stride, padding):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 7, 6, 3)), jnp.float32)  # many are equal

    def both(x):
        value, pull = jax.vjp(lambda x: nnx.max_pool(x, (window, window), (stride, stride), padding), x)
        return value, pull(normal(*value.shape))

    program = assert_same(both, x, tolerance=1e-6)
    assert "reduce_window" not in program
    assert "select_and_scatter" not in program


@pytest.mark.parametrize(
    "batch", [1, 10, 11, 24, 25, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 9, 20, 21))]
)
def test_weight_gradients_of_small_batches_are_outer_products(batch):
    x, kernel, dy = normal(batch, 80), normal(80, 64, seed=1), normal(batch, 64, seed=2)

    def both(x, kernel, dy):
        value, pull = jax.vjp(jnp.matmul, x, kernel)
        return value, pull(dy)

    products = assert_same(both, x, kernel, dy).count("dot_general")
    assert products == (2 if batch <= forms.OUTER_LIMIT else 3)
    lanes = jax.vmap(both)
    given = (jnp.stack([a, 2 * a]) for a in (x, kernel, dy))
    assert assert_same(lanes, *given).count("dot_general") == products
    assert assert_same(both, x[:, :7], kernel[:7], dy).count("dot_general") == 3  # too small for it to pay


@pytest.mark.parametrize("rows", [0, 1, 5, forms.UNROLLED + 1])
def test_a_sum_over_the_first_axis(rows):
    x = normal(rows, 3, 4)
    np.testing.assert_allclose(forms.leading_sum(x), np.asarray(x).sum(0), atol=1e-5)
    assert_same(lambda x: x.sum(0), x + 1) if rows else None


def test_what_would_not_fit_stays_a_convolution():
    def function(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    small = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((10, 32, 32, 64), (3, 3, 64, 64))]
    large = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((10, 512, 512, 64), (7, 7, 64, 64))]
    for given, left in ((small, False), (large, True)):
        program = str(jax.make_jaxpr(quick(function, arranged=False))(*given))
        assert ("conv_general_dilated" in program) == left


# --- in a round ------------------------------------------------------------------------------------------------------


class Network(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.depthwise = nnx.Conv(4, 4, (3, 3), strides=2, feature_group_count=4, rngs=rngs)
        self.out = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        x = self.depthwise(nnx.max_pool(nnx.relu(self.first(x)), (2, 2), (2, 2)))
        return self.out(x.reshape(x.shape[0], -1))


class LinenNetwork(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.avg_pool(linen.relu(linen.Conv(4, (3, 3))(x)), (4, 4), (4, 4))
        return linen.Dense(3)(x.reshape(x.shape[0], -1))


def losses():
    graph, params = nnx.split(Network(nnx.Rngs(0)))
    model = LinenNetwork()

    def of(apply):
        return lambda params, batch, key: optax.softmax_cross_entropy_with_integer_labels(
            apply(params, batch["inputs"]), batch["labels"]
        )

    yield of(lambda params, x: nnx.merge(graph, params)(x)), params
    yield of(model.apply), model.init(KEY, jnp.zeros((1, 8, 8, 1)))


@pytest.fixture(scope="module")
def population():
    labels = np.random.default_rng(1).integers(0, 3, 24)
    inputs = normal(24, 8, 8, 1) + labels[:, None, None, None]
    return fs.Population({"inputs": inputs, "labels": jnp.asarray(labels, jnp.int32)}, jnp.asarray([0, 7, 12, 24]))


@pytest.mark.parametrize(
    ("which", "lanes"),
    [(0, 3), *(pytest.param(*other, marks=pytest.mark.slow) for other in ((1, 1), (0, 1), (1, 3)))],
    ids=["nnx, 3 lanes", "linen, 1 lane", "nnx, 1 lane", "linen, 3 lanes"],
)
def test_a_round_of_ones_own_model_is_the_same(population, which, lanes):
    loss, params = list(losses())[which]
    algorithm = fs.fedavg(loss, client_tx=optax.sgd(0.1))
    given = fs.init(algorithm, params, 3), fs.select(population, jnp.arange(3)), KEY
    states, programs = [], []
    for rewrite in (None, True, False):
        round_fn = fs.make_round(algorithm, batch_size=4, local_epochs=2, lanes=lanes, rewrite=rewrite)
        programs.append(str(jax.make_jaxpr(round_fn)(*given)))
        states.append(jax.jit(round_fn)(*given)[0].params if rewrite is not True else None)
    assert programs[0] == programs[1] != programs[2]  # on a CPU it is on by default
    assert slow_convolutions(programs[0]) == 0 < slow_convolutions(programs[2])
    for one, other in zip(*(jax.tree.leaves(states[i]) for i in (0, 2)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_loss_without_any_is_traced_as_it_is(population):
    def loss(params, batch, key):
        return jnp.square(batch["inputs"].mean((1, 2, 3)) * params["w"] - batch["labels"])

    algorithm = fs.fedavg(loss, client_tx=optax.sgd(0.1))
    given = fs.init(algorithm, {"w": jnp.ones(())}, 3), fs.select(population, jnp.arange(3)), KEY
    on, off = (
        jax.jit(fs.make_round(algorithm, batch_size=4, rewrite=rewrite)).lower(*given).as_text()
        for rewrite in (True, False)
    )
    assert on == off


def test_evaluation_is_rewritten_as_well(population):
    loss, params = next(losses())
    evaluate = fs.make_evaluation(lambda params, batch: {"loss": loss(params, batch, KEY)}, batch_size=10)
    found = evaluate(params, population.examples)["loss"]
    assert slow_convolutions(str(jax.make_jaxpr(evaluate)(params, population.examples))) == 0
    np.testing.assert_allclose(found, loss(params, population.examples, KEY).mean(), rtol=1e-5)


def test_rewrite_is_true_or_false():
    algorithm = fs.fedavg(lambda p, b, k: b["x"] * p, client_tx=optax.sgd(0.1))
    with pytest.raises(fs.InputError, match="rewrite: 'yes'"):
        fs.make_round(algorithm, batch_size=1, rewrite="yes")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", [2, 3])
def test_windows_that_fit_nowhere_give_nothing(size):
    """As they are written they give arrays without entries."""

    def both(x, kernel):
        pooled = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 5, 5, 1), (1, 1, 1, 1), "VALID")
        return pooled, jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    given = jnp.ones((1, size, size, 2)), jnp.ones((5, 5, 2, 3))
    for found, plain in zip(quick(both)(*given), both(*given), strict=True):
        assert found.shape == plain.shape
        assert found.size == 0
