"""Robust rules against plain NumPy, in float64; what they keep, what they withstand, and what they turn down."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CLASSES, FEATURES, RATE, assert_close, loss_fn, make_federation, one_line
from test_reference import gradient, start_weights

import fedjax_sim as fs
from fedjax_sim import aggregators as rules
from fedjax_sim.aggregators.coordinate import SMALL
from fedjax_sim.aggregators.sorting import UNROLLED, mean_of_ranks, rows_of, sorted_rows
from fedjax_sim.core.aggregate import mean
from fedjax_sim.core.client import Message

SLOTS, ENTRIES = 12, 7
KEY = jax.random.key(0)


# --- the rules in NumPy: of messages [n, P], numbers of examples and ids ----------------------------------------------


def np_mean(m, sizes, ids):
    return m.mean(0)


def np_median(m, sizes, ids):
    return np.median(m, axis=0)


def np_trimmed(m, sizes, ids, fraction=0.3):
    cut = int(fraction * len(m) + 1e-9)
    return np.sort(m, axis=0)[cut : len(m) - cut].mean(0)


def np_geometric(m, sizes, ids, iterations=8, nu=1e-6, weighting="examples"):
    v, a = np.zeros(m.shape[1]), sizes if weighting == "examples" else np.ones(len(m))
    for _ in range(iterations):
        b = a / np.maximum(nu, np.linalg.norm(m - v, axis=1))
        v = b @ m / b.sum()
    return v


def np_scores(m, f):
    distances = ((m[:, None] - m) ** 2).sum(2)
    others = [np.sort(np.delete(row, i)) for i, row in enumerate(distances)]
    return np.array([row[: max(len(m) - f - 2, 1)].sum() for row in others])


def np_order(m, ids, f):
    """By score, to a precision that ties survive, and then by id."""
    scores = np_scores(m, f)
    return np.lexsort((ids, np.round(scores, 9)))


def np_multi_krum(m, sizes, ids, attackers=None, selected=None):
    n = len(m)
    f = min(n if attackers is None else attackers, max(n - 3, 0) // 2)
    return m[np_order(m, ids, f)[: n - f if selected is None else selected]].mean(0)


def np_bulyan(m, sizes, ids, attackers=None):
    n = len(m)
    f = min(n if attackers is None else attackers, max(n - 3, 0) // 4)
    left, chosen = list(range(n)), []
    while len(chosen) < n - 2 * f:
        best = left[np_order(m[left], ids[left], f)[0]]
        left.remove(best)
        chosen.append(best)
    away = np.argsort(np.abs(m[chosen] - np.median(m[chosen], axis=0)), axis=0, kind="stable")
    return np.take_along_axis(m[chosen], away, axis=0)[: n - 4 * f].mean(0)


def np_clipping(m, sizes, ids, tau=1.5, iterations=3):
    v = np.zeros(m.shape[1])
    for _ in range(iterations):
        v = v + np.mean([(x - v) * min(1, tau / max(np.linalg.norm(x - v), 1e-300)) for x in m], axis=0)
    return v


RULES = {
    "median": (rules.coordinate_median(), np_median),
    "trimmed_mean": (rules.trimmed_mean(0.3), np_trimmed),
    "geometric_median": (rules.geometric_median(), np_geometric),
    "geometric_median, uniform": (
        rules.geometric_median(3, 0.1, "uniform"),
        partial(np_geometric, iterations=3, nu=0.1, weighting="uniform"),
    ),
    "krum": (rules.krum(), partial(np_multi_krum, selected=1)),
    "krum, 2 attackers": (rules.krum(2), partial(np_multi_krum, attackers=2, selected=1)),
    "multi_krum": (rules.multi_krum(), np_multi_krum),
    "multi_krum, 4 of them": (rules.multi_krum(3, 4), partial(np_multi_krum, attackers=3, selected=4)),
    "bulyan": (rules.bulyan(), np_bulyan),
    "bulyan, 1 attacker": (rules.bulyan(1), partial(np_bulyan, attackers=1)),
    "centered_clipping": (rules.centered_clipping(1.5), np_clipping),
    "norm_bounding": (rules.norm_bounding(1.5), partial(np_clipping, iterations=1)),
}


def aggregate(rule, messages, sizes, ids):
    """What the round makes of messages [C, P], of a model with statistics: the aggregate [P] and the weights [C]."""
    wrapped = Message(fs.Variables(messages[:, :3], messages[:, 3:].reshape(len(messages), 2, -1)))
    received, weights = rule.receive(wrapped, ids, sizes, KEY)
    received = jax.tree.map(lambda m: jnp.where((weights > 0).reshape((-1,) + (1,) * (m.ndim - 1)), m, 0), received)
    start = rule.init(jax.tree.map(lambda m: jnp.zeros(m.shape[1:]), wrapped))
    result = rule.finish(rule.add(start, received, weights)).update
    return jnp.concatenate([result.params, result.statistics.reshape(-1)]), weights


COMPILED = {name: jax.jit(partial(aggregate, rule)) for name, (rule, _) in RULES.items()}


def cohort(seed=0, slots=SLOTS):
    rng = np.random.default_rng(seed)
    messages = rng.standard_normal((slots, ENTRIES)) * rng.uniform(0.5, 2, (slots, 1)) + 0.5
    return messages.astype(np.float32), rng.integers(1, 20, slots).astype(np.float32), rng.permutation(30)[:slots]


@pytest.fixture(params=list(RULES))
def name(request):
    return request.param


@pytest.mark.parametrize("arrived", range(SLOTS + 1))
def test_equals_numpy_whatever_number_of_clients_counts(name, arrived):
    """Of the others, some are absent and some send what is not finite, or too large to be squared."""
    messages, sizes, ids = cohort(arrived)
    out = np.random.default_rng(arrived).permutation(SLOTS)[arrived:]
    counts = np.ones(SLOTS, bool)
    counts[out] = False
    for i, client in enumerate(out):
        if i % 4 == 0:
            sizes[client] = 0
        else:
            messages[client, i % ENTRIES] = [np.nan, np.inf, 1e30][i % 4 - 1]
    got, weights = COMPILED[name](messages, sizes, ids)
    exact = messages[counts].astype(np.float64)
    wanted = RULES[name][1](exact, sizes[counts], ids[counts]) if arrived else np.zeros(ENTRIES)
    np.testing.assert_allclose(got, wanted, atol=2e-6, rtol=1e-5)
    assert not np.asarray(weights)[~counts].any()
    assert (np.asarray(weights).sum() > 0) == (arrived > 0)


def test_the_order_of_the_cohort_changes_nothing(name):
    """Not even where messages are equal, and scores with them."""
    messages, sizes, ids = cohort(1)
    messages[5:8] = messages[4]
    messages[9] = messages[8]
    got, weights = COMPILED[name](messages, sizes, ids)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(SLOTS)
        again, reweighed = COMPILED[name](messages[order], sizes[order], ids[order])
        np.testing.assert_allclose(again, got, atol=1e-6)
        np.testing.assert_array_equal(reweighed, np.asarray(weights)[order])


def test_equal_messages_give_that_message(name):
    messages, sizes, ids = cohort(2)
    messages[:] = messages[3] / np.linalg.norm(messages[3])
    np.testing.assert_allclose(COMPILED[name](messages, sizes, ids)[0], messages[3], atol=1e-6)


@pytest.mark.parametrize("size", [1e2, 1e8, 1e18])
def test_two_of_twelve_cannot_carry_the_aggregate_away(name, size):
    messages, sizes, ids = cohort(3)
    sizes[:] = 5
    honest = messages[2:].mean(0)
    for direction in (np.ones(ENTRIES), np.random.default_rng(0).standard_normal(ENTRIES)):
        messages[:2] = size * direction
        got, _ = COMPILED[name](messages, sizes, ids)
        assert np.linalg.norm(got - honest) < 2
        carried, _ = aggregate(mean(), messages, sizes, ids)
        assert np.linalg.norm(carried) > size / 10


def test_median_of_an_odd_and_of_an_even_number():
    messages, sizes, ids = cohort(4)
    ordered = np.sort(messages, axis=0)
    np.testing.assert_allclose(COMPILED["median"](messages, sizes, ids)[0], (ordered[5] + ordered[6]) / 2, atol=1e-6)
    sizes[2] = 0
    ordered = np.sort(np.delete(messages, 2, axis=0), axis=0)
    np.testing.assert_array_equal(COMPILED["median"](messages, sizes, ids)[0], ordered[5])


@pytest.mark.parametrize(
    ("rule", "same"),
    [
        (rules.trimmed_mean(0), mean("uniform")),
        (rules.trimmed_mean(0.5), rules.coordinate_median()),
        (rules.multi_krum(0, SLOTS), mean("uniform")),
        (rules.multi_krum(2, 1), rules.krum(2)),
        (rules.bulyan(0), mean("uniform")),
        (rules.geometric_median(1, nu=1e4), mean("examples")),
        (rules.centered_clipping(1e4, 1), mean("uniform")),
        (rules.centered_clipping(0.7, 1), rules.norm_bounding(0.7)),
        (rules.norm_bounding(1e4, "examples"), mean("examples")),
        (rules.finite_only(mean()), mean()),
    ],
)
def test_what_rules_become_at_the_ends_of_their_options(rule, same):
    messages, sizes, ids = cohort(5)
    assert_close(aggregate(rule, messages, sizes, ids), aggregate(same, messages, sizes, ids))


def test_exactly_the_fraction_is_trimmed():
    """0.29 of 100 is 29, though the product of the two is below it in floating point."""
    rule = jax.jit(lambda fraction, *given: aggregate(rules.trimmed_mean(fraction), *given)[0])
    messages = np.sort(np.random.default_rng(0).standard_normal((100, ENTRIES)), axis=0).astype(np.float32)
    for fraction, cut in [(0.29, 29), (0.285, 28), (0.01, 1), (0.009, 0), (0.495, 49), (0.5, 49)]:
        got = rule(fraction, messages, np.ones(100, np.float32), np.arange(100))
        np.testing.assert_allclose(got, messages[cut : 100 - cut].mean(0), atol=1e-6)


def test_the_geometric_median_has_the_least_sum_of_distances():
    messages, sizes, ids = cohort(6)

    def cost(v):
        return sizes @ np.linalg.norm(messages - v, axis=1)

    found = np.asarray(aggregate(rules.geometric_median(100), messages, sizes, ids)[0])
    rng = np.random.default_rng(0)
    assert all(cost(found) < cost(found + 0.05 * rng.standard_normal(ENTRIES)) for _ in range(50))


def test_krum_tells_whom_it_took():
    messages, sizes, ids = cohort(7)
    got, weights = COMPILED["krum, 2 attackers"](messages, sizes, ids)
    taken = int(np.argmax(weights))
    assert np.asarray(weights).tolist() == np.eye(SLOTS)[taken].tolist()
    np.testing.assert_array_equal(got, messages[taken])


@pytest.mark.parametrize("count", range(1, 11))
def test_the_network_sorts_every_row_of_zeros_and_ones_and_hence_everything(count):
    everything = (np.arange(2**count) >> np.arange(count)[:, None] & 1).astype(np.float32)
    ordered = np.sort(everything, axis=0)
    np.testing.assert_array_equal(jax.jit(sorted_rows)(everything), ordered)
    one = jax.jit(lambda rank: mean_of_ranks(rows_of(jnp.asarray(everything)), rank, rank + 1))
    for rank in range(count):
        np.testing.assert_array_equal(one(rank), ordered[rank])


@pytest.mark.parametrize("count", [1, 2, 17, UNROLLED, UNROLLED + 1])
def test_means_of_ranks_with_infinite_values(count):
    rows = np.random.default_rng(count).standard_normal((count, 5, 2)).astype(np.float32)
    rows[: count // 3] = np.inf
    ranks = jax.jit(lambda first, last: mean_of_ranks(rows_of(jnp.asarray(rows)), first, last))
    for first, last in [(0, 1), (count // 4, count - count // 3), (1, 1)]:
        wanted = np.sort(rows, axis=0)[first:last].mean(0) if last > first else np.zeros((5, 2))
        np.testing.assert_allclose(ranks(first, last), wanted, rtol=1e-5, atol=1e-6)


LARGE = {
    "median": (rules.coordinate_median(), np_median),
    "multi_krum": (rules.multi_krum(), np_multi_krum),
    "bulyan": (rules.bulyan(), np_bulyan),
    "geometric_median": (rules.geometric_median(), np_geometric),
    "centered_clipping": (rules.centered_clipping(60.0), partial(np_clipping, tau=60.0)),
}


SORTING = ("median",)  # for others a larger cohort is no other program, or a long one


@pytest.mark.parametrize(
    ("name", "slots"),
    [
        pytest.param(name, slots, marks=[pytest.mark.slow] if slots > UNROLLED and name not in SORTING else [])
        for name in LARGE
        for slots in (9, UNROLLED + 6)
    ],
)
def test_large_messages_of_cohorts_of_any_size(name, slots):
    """Leaves above and below the size up to which they are joined, and more messages than are sorted in one pass."""
    rule, wanted = LARGE[name]
    rng = np.random.default_rng(slots)
    shapes = [(SMALL // 64 + 1, 64), (5,), (3, 2), (7, SMALL // 7 + 1)]
    messages = [rng.standard_normal((slots, *shape)).astype(np.float32) for shape in shapes]
    sizes, ids = rng.integers(1, 9, slots).astype(np.float32), np.arange(slots)
    sizes[4] = 0

    @jax.jit
    def combined(messages):
        received, weights = rule.receive(messages, ids, sizes, KEY)
        start = rule.init([m[0] for m in messages])
        return rule.finish(rule.add(start, [m.at[4].set(0) for m in received], weights))

    flat = np.concatenate([m.reshape(slots, -1) for m in messages], axis=1).astype(np.float64)
    there = np.arange(slots) != 4
    got = np.concatenate([np.ravel(x) for x in combined([jnp.asarray(m) for m in messages])])
    np.testing.assert_allclose(got, wanted(flat[there], sizes[there], ids[there]), atol=2e-5)


def test_messages_keep_their_precision(name):
    """Half the bits of float32, and the result of float32 to within them."""
    messages, sizes, ids = cohort(9)
    rough = jnp.asarray(messages).astype(jnp.bfloat16)
    rule, _ = RULES[name]
    received, weights = rule.receive([rough], ids, sizes, KEY)
    (got,) = rule.finish(rule.add(rule.init([rough[0]]), received, weights))
    exact, _ = COMPILED[name](rough.astype(jnp.float32), sizes, ids)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=0.05)


@pytest.mark.parametrize("count", [17, 50, 64, 100])
def test_longer_networks_sort(count):
    rows = np.random.default_rng(count).standard_normal((count, 40, 2)).astype(np.float32)
    rows[3], rows[7, :20] = np.inf, -np.inf
    np.testing.assert_array_equal(sorted_rows(jnp.asarray(rows)), np.sort(rows, axis=0))


# --- the algorithms ---------------------------------------------------------------------------------------------------

SIZES = (9, 1, 4, 16, 7, 2, 5, 11, 3)
COHORTS = np.array([[0, 3, 4, 1, 8, 6, 7, 2], [5, 1, 3, 2, 8, 4, 7, 6], [2, 8, 0, 3, 5, 7, 1, 4]], np.int32)
EPOCHS = 2

ALGORITHMS = {
    "median": ({}, np_median),
    "trimmed_mean": ({"fraction": 0.3}, np_trimmed),
    "rfa": ({}, np_geometric),
    "krum": ({"attackers": 2}, partial(np_multi_krum, attackers=2, selected=1)),
    "multi_krum": ({"attackers": 2, "selected": 3}, partial(np_multi_krum, attackers=2, selected=3)),
    "bulyan": ({"attackers": 1}, partial(np_bulyan, attackers=1)),
    "centered_clipping": ({"tau": 0.2}, partial(np_clipping, tau=0.2)),
    "norm_bounding": ({"bound": 0.2}, partial(np_clipping, tau=0.2, iterations=1)),
}


@pytest.fixture(scope="module")
def larger():
    return make_federation(SIZES)


def local(federation, w, client):
    rows = slice(federation.offsets[client], federation.offsets[client + 1])
    for _ in range(EPOCHS):
        w = w - RATE * gradient(w, federation.inputs[rows].astype(np.float64), federation.labels[rows])
    return w


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_equal_a_plain_loop(larger, name):
    options, rule = ALGORITHMS[name]
    algorithm = fs.ALGORITHMS[name](loss_fn, client_tx=optax.sgd(RATE), **options)
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=max(SIZES), local_epochs=EPOCHS))
    state, w = fs.init(algorithm, larger.params, len(SIZES)), start_weights(larger)
    for ids in COHORTS:
        state, _ = round_fn(state, fs.select(larger.population, ids), KEY)
        updates = np.stack([(w - local(larger, w, i)).ravel() for i in ids])
        w = w - rule(updates, np.array(SIZES)[ids].astype(float), ids).reshape(w.shape)
    got = np.concatenate([state.params["kernel"], state.params["bias"][None]])
    np.testing.assert_allclose(got, w, atol=1e-5)


@pytest.mark.parametrize("name", ["median", "krum", pytest.param("bulyan", marks=pytest.mark.slow), "rfa"])
def test_each_device_aggregates_its_entries_of_all_messages(larger, name):
    """What passes between devices is each message once; no device gets the cohort's messages whole."""
    devices = jax.devices()[:2]
    algorithm = fs.ALGORITHMS[name](loss_fn, client_tx=optax.sgd(RATE))
    columns = SMALL // 4
    params = {"kernel": jnp.zeros((FEATURES, columns)), "bias": jnp.zeros(columns)}  # 5 rows do not divide
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=4, devices=devices))
    state, population, key = fs.replicate((fs.init(algorithm, params, len(SIZES)), larger.population, KEY), devices)
    given = state, fs.select(population, COHORTS[0]), key
    compiled = round_fn.lower(*given).compile()
    text = compiled.as_text() or ""
    moved = [line for line in text.splitlines() if " all-gather(" in line or " all-reduce(" in line]
    assert " all-to-all(" in text
    assert moved
    assert not [line for line in moved if f"f32[{len(COHORTS[0])},{FEATURES},{columns}]" in line]
    alone = jax.jit(fs.make_round(algorithm, batch_size=4))
    one = fs.init(algorithm, params, len(SIZES)), fs.select(larger.population, COHORTS[0]), KEY
    assert_close(compiled(*given), alone(*one), atol=1e-5)


def with_statistics(variables, batch, key):
    losses = loss_fn(variables.params, batch, key)
    return losses, {"mean": 0.9 * variables.statistics["mean"] + 0.1 * batch["inputs"].mean(0)}


@pytest.mark.parametrize("name", ["bulyan", "norm_bounding"])
def test_statistics_are_aggregated_with_the_parameters(larger, name):
    algorithm = fs.ALGORITHMS[name](with_statistics, client_tx=optax.sgd(RATE))
    model = fs.Variables(larger.params, {"mean": jnp.zeros(FEATURES)})
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=max(SIZES), lanes=2))
    before = fs.init(algorithm, model, len(SIZES))
    after, metrics = round_fn(before, fs.select(larger.population, COHORTS[0]), KEY)
    means = np.array([larger.inputs[larger.offsets[i] : larger.offsets[i + 1]].mean(0) for i in COHORTS[0]])
    moved = np.asarray(after.params.statistics["mean"])
    assert (0.1 * means.min(0) - 1e-6 <= moved).all()
    assert (moved <= 0.1 * means.max(0) + 1e-6).all()
    assert moved.any()
    assert after.params.params["kernel"].shape == (FEATURES, CLASSES)
    assert not np.asarray(metrics.rejected).any()


# --- bad options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: rules.trimmed_mean(-0.1), ["fraction", "-0.1"]),
        (lambda: rules.trimmed_mean(0.6), ["fraction", "0.6", "0 to 0.5"]),
        (lambda: rules.geometric_median(0), ["iterations", "0"]),
        (lambda: rules.geometric_median(nu=0), ["nu", "over 0"]),
        (lambda: rules.geometric_median(weighting="size"), ["weighting", "examples, uniform"]),
        (lambda: rules.krum(-1), ["attackers", "-1"]),
        (lambda: rules.multi_krum(1, 0), ["selected", "0"]),
        (lambda: rules.bulyan(1.5), ["attackers", "1.5"]),  # pyright: ignore[reportArgumentType]
        (lambda: rules.centered_clipping(0), ["tau", "over 0"]),
        (lambda: rules.centered_clipping(1, 0), ["iterations", "0"]),
        (lambda: rules.norm_bounding(-1), ["bound", "over 0"]),
        (lambda: rules.norm_bounding(1, "size"), ["weighting", "'size'"]),
        (lambda: aggregate(rules.krum(5), *cohort()), ["attackers: 5 in a cohort of 12", "at most 4", "13"]),
        (lambda: aggregate(rules.bulyan(3), *cohort()), ["attackers: 3 in a cohort of 12", "at most 2", "15"]),
    ],
)
def test_bad_options_are_one_line(make, parts):
    with pytest.raises(fs.InputError) as error:
        make()
    one_line(error, *parts)
