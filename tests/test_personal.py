"""Algorithms with personal models: the papers' loops in NumPy, identities, parts of models, personal predictions."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import BATCH, FEATURES, RATE, SIZES, assert_close, assert_equal, loss_fn, make_federation, one_line
from test_reference import COHORTS, EPOCHS, KEY, ROUNDS, gradient, start_weights

import fedjax_sim as fs
from fedjax_sim.core.client import LocalData
from fedjax_sim.core.permute import permuted
from fedjax_sim.core.round import TRAIN, stage_key
from fedjax_sim.personal import merge, split, train_part

# Compiling is what takes long here, and what it makes runs for an instant.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
FEDERATION = make_federation()
# Client 0 with 5 local steps.
DATA = LocalData(jnp.int32(0), FEDERATION.population.examples, jnp.int32(0), jnp.int32(9), jnp.int32(5),
                 KEY, BATCH, (1,), full_losses=True)  # fmt: skip
N, NAMES = len(SIZES), ("apfl", "ditto", "fedbn", "fedper", "fedrep", "perfedavg", "pfedme")


@cache
def runner(name, **static):
    """All rounds, compiled once for any hyper-parameters, which are traced."""

    @quick
    def run(options):
        algorithm = fs.ALGORITHMS[name](loss_fn, client_tx=optax.sgd(RATE), **static, **options)
        round_fn = fs.make_round(algorithm, batch_size=BATCH, local_epochs=EPOCHS, lanes=3)
        state = fs.init(algorithm, FEDERATION.params, N)
        return jax.lax.scan(lambda s, ids: round_fn(s, fs.select(FEDERATION.population, ids), KEY), state, COHORTS)

    return run


def rounds(name, static=None, **options):
    """The state after the rounds, and their metrics."""
    return runner(name, **(static or {}))({k: jnp.float32(v) for k, v in options.items()})


def as_weights(params):
    """Like the references' weights, whose last row is the bias; leaves may be [N, ...], or None for zeros."""
    parts = dict(params)
    like = next(np.asarray(x) for x in parts.values() if x is not None)
    axes = like.shape[: like.ndim - (2 if parts["kernel"] is not None else 1)]
    kernel = np.zeros((*axes, FEATURES, 3)) if parts["kernel"] is None else np.asarray(parts["kernel"])
    bias = np.zeros((*axes, 3)) if parts["bias"] is None else np.asarray(parts["bias"])
    return np.concatenate([kernel, bias[..., None, :]], axis=-2)


# --- the papers' loops ------------------------------------------------------------------------------------------------


@quick
def orders_of(ids, number):
    """Of every client and of twice the round's epochs; compiled, for eagerly it takes longer than all the rest."""

    def order(client, size, epoch):
        key = jax.random.fold_in(stage_key(KEY, number, TRAIN), client)
        return permuted(key, size, jnp.arange(max(SIZES)) % size, epoch)

    epochs = jnp.arange(2 * EPOCHS)
    return jax.vmap(lambda i: jax.vmap(lambda e: order(i, jnp.asarray(SIZES)[i], e))(epochs))(ids)


@cache
def all_batches(client, number):
    """The batches of a client's round, and those that would follow them; only their order comes from the library."""
    found = []
    for order in np.asarray(orders_of(jnp.arange(N), number))[client]:
        order = FEDERATION.offsets[client] + order[: SIZES[client]]
        assert len(set(order)) == SIZES[client]
        for first in range(0, SIZES[client], BATCH):
            rows = order[first : first + BATCH]
            found.append((FEDERATION.inputs[rows].astype(np.float64), FEDERATION.labels[rows]))
    return found[: len(found) // 2], found[len(found) // 2 :]


def batches(client, number):
    return all_batches(int(client), number)[0]


def mean_of(ids, models):
    weights = np.array([SIZES[i] for i in ids], float)
    return np.tensordot(weights / weights.sum(), models, 1)


def descend(w, steps, mask: Any = 1.0):
    for x, y in steps:
        w = w - RATE * mask * gradient(w, x, y)
    return w


def parted(personal, head_steps: int | None = 0):
    """FedPer and FedBN; with `head_steps`, FedRep, of 0 as many as the local steps."""
    own = np.zeros((FEATURES + 1, 3))
    own[-1 if personal == "bias" else slice(-1)] = 1

    def together(w, steps):
        return descend(w, steps)

    def in_turn(w, steps):
        count = head_steps or len(steps)
        repeated = [steps[i % len(steps)] for i in range(count)]
        return descend(descend(w, repeated, own), steps, 1 - own)

    def run(train):
        w = start_weights(FEDERATION)
        kept = np.array([w * own] * N)
        for number, ids in enumerate(COHORTS):
            sent = []
            for i in ids:
                trained = train(w * (1 - own) + kept[i], batches(i, number))
                sent.append(trained)
                kept[i] = trained * own
            w = mean_of(ids, sent) * (1 - own) + w * own
        return w, kept

    return run(in_turn if head_steps is not None else together)


def ditto(lam):
    """Its global model is FedAvg's."""
    w = start_weights(FEDERATION)
    own = np.array([w] * N)
    for number, ids in enumerate(COHORTS):
        for i in ids:
            for x, y in batches(i, number):
                own[i] = own[i] - RATE * (gradient(own[i], x, y) + lam * (own[i] - w))
        w = mean_of(ids, [descend(w, batches(i, number)) for i in ids])
    return w, own


def pfedme(lam, eta, inner_steps):
    w = start_weights(FEDERATION)
    for number, ids in enumerate(COHORTS):
        sent = []
        for i in ids:
            mine, theta = w, w
            for x, y in batches(i, number):
                for _ in range(inner_steps):
                    theta = theta - RATE * (gradient(theta, x, y) + lam * (theta - mine))
                mine = mine - eta * lam * (mine - theta)
            sent.append(mine)
        w = mean_of(ids, sent)
    return w, ()


def apfl(alpha, alpha_rate=None):
    """With its `alpha` adaptive where a rate is given."""
    w = start_weights(FEDERATION)
    own, shares = np.array([w] * N), np.full(N, float(alpha))
    for number, ids in enumerate(COHORTS):
        sent = []
        for i in ids:
            mine = w
            for x, y in batches(i, number):
                slope = gradient(shares[i] * own[i] + (1 - shares[i]) * mine, x, y)
                difference = own[i] - mine
                mine, own[i] = mine - RATE * gradient(mine, x, y), own[i] - RATE * shares[i] * slope
                if alpha_rate is not None:
                    shares[i] = np.clip(shares[i] - alpha_rate * np.sum(difference * slope), 0, 1)
            sent.append(mine)
        w = mean_of(ids, sent)
    return w, (own, shares)


def hessian_product(w, x, v):
    """Of the mean cross-entropy: the Hessian at `w` times `v`."""
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    logits, along = x @ w, x @ v
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return x.T @ (p * along - p * np.sum(p * along, axis=1, keepdims=True)) / len(x)


def perfedavg(alpha, first_order):
    w = start_weights(FEDERATION)
    for number, ids in enumerate(COHORTS):
        sent = []
        for i in ids:
            mine = w
            for (x, y), other in zip(*all_batches(int(i), number), strict=True):
                outer = gradient(mine - alpha * gradient(mine, *other), x, y)
                mine = mine - RATE * (outer - (0 if first_order else alpha * hessian_product(mine, other[0], outer)))
            sent.append(mine)
        w = mean_of(ids, sent)
    return w, ()


CASES = (
    ("fedper", {}, {}, lambda: parted("kernel", None)),  # the last in natural order
    ("fedbn", {"personal": "bias"}, {}, lambda: parted("bias", None)),
    ("fedrep", {"personal": "^bias$"}, {}, lambda: parted("bias")),
    ("fedrep", {"head_steps": 3}, {}, lambda: parted("kernel", 3)),
    ("ditto", {}, {"lam": 0.3}, lambda: ditto(0.3)),
    ("pfedme", {"inner_steps": 3}, {"lam": 1.5, "eta": 0.3}, lambda: pfedme(1.5, 0.3, 3)),
    ("apfl", {}, {"alpha": 0.3}, lambda: apfl(0.3)),
    ("apfl", {"adaptive": True}, {"alpha": 0.3, "alpha_rate": 0.4}, lambda: apfl(0.3, 0.4)),
    ("perfedavg", {}, {"alpha": 0.4}, lambda: perfedavg(0.4, False)),
    ("perfedavg", {"first_order": True}, {"alpha": 0.4}, lambda: perfedavg(0.4, True)),
)


@pytest.mark.parametrize(("name", "static", "options", "reference"), CASES)
def test_equals_the_papers_pseudo_code(name, static, options, reference):
    state, _ = rounds(name, static, **options)
    weights, kept = reference()
    np.testing.assert_allclose(as_weights(state.params), weights, atol=1e-5)
    if name == "apfl":
        np.testing.assert_allclose(as_weights(state.clients.own), kept[0], atol=1e-5)
        if static:
            np.testing.assert_allclose(state.clients.alpha, kept[1], atol=1e-5)
            assert 0 < np.ptp(kept[1][1:]) < 1  # it did move, to somewhere else on each client
    elif len(kept):
        np.testing.assert_allclose(as_weights(state.clients), kept, atol=1e-5)


def test_the_servers_rate_is_the_beta_of_pfedme():
    """One round moves the model by beta times what it moves by with 1."""

    @quick
    def moved(beta):
        algorithm = fs.pfedme(loss_fn, client_tx=optax.sgd(RATE), server_tx=optax.sgd(beta))
        round_fn = fs.make_round(algorithm, batch_size=BATCH, local_steps=2)
        state, _ = round_fn(fs.init(algorithm, FEDERATION.params, N), fs.select(FEDERATION.population, COHORTS[0]), KEY)
        return jax.tree.map(jnp.subtract, state.params, FEDERATION.params)

    assert_close(jax.tree.map(lambda x: x / 4, moved(1.0)), moved(0.25))


# --- identities -------------------------------------------------------------------------------------------------------


def alone():
    """Each client's weights after local training by itself in the rounds that it took part in."""
    own = np.array([start_weights(FEDERATION)] * N)
    for number, ids in enumerate(COHORTS):
        for i in ids:
            own[i] = descend(own[i], batches(i, number))
    return own


def test_ditto_without_a_pull_and_apfl_with_all_its_own_are_local_training():
    np.testing.assert_allclose(as_weights(rounds("ditto", lam=0.0)[0].clients), alone(), atol=1e-5)
    np.testing.assert_allclose(as_weights(rounds("apfl", alpha=1.0)[0].clients.own), alone(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"), [("ditto", {"lam": 0.3}), ("apfl", {"alpha": 0.3}), ("perfedavg", {"alpha": 0.0})]
)
def test_the_global_model_is_that_of_fedavg(name, options):
    state, _ = rounds(name, **options)
    np.testing.assert_allclose(as_weights(state.params), ditto(0.0)[0], atol=1e-5)


def test_apfl_with_nothing_of_its_own_predicts_with_the_global_model():
    state, _ = rounds("apfl", alpha=0.0)
    algorithm = fs.apfl(loss_fn, client_tx=optax.sgd(RATE), alpha=0.0)
    own = jax.tree.map(lambda m: m[2] + 1.0, state.clients)
    assert algorithm.personal is not None
    assert_equal(algorithm.personal(state.params, own, DATA, KEY), state.params)


def test_pfedme_without_a_tie_leaves_the_global_model():
    state, _ = rounds("pfedme", static={"inner_steps": 3}, lam=0.0, eta=0.3)
    assert_equal(state.params, FEDERATION.params)


def test_with_one_client_the_parts_are_those_of_fedavg():
    federation = make_federation(sizes=(11,))
    results = []
    for algorithm in (
        fs.fedavg(loss_fn, client_tx=optax.sgd(RATE)),
        fs.fedper(loss_fn, client_tx=optax.sgd(RATE), personal="bias"),
    ):
        round_fn = quick(fs.make_round(algorithm, batch_size=BATCH))
        state = fs.init(algorithm, federation.params, 1)
        for _ in range(3):
            state, _ = round_fn(state, fs.select(federation.population, jnp.zeros(1, jnp.int32)), KEY)
        results.append(state)
    plain, parted = results
    np.testing.assert_allclose(parted.params["kernel"], plain.params["kernel"], atol=1e-6)
    np.testing.assert_allclose(parted.clients["bias"][0], plain.params["bias"], atol=1e-6)
    assert_equal(parted.params["bias"], federation.params["bias"])


@pytest.mark.parametrize(("name", "static"), [("fedbn", {"personal": "bias"}), ("fedrep", {"personal": "^bias$"})])
def test_only_the_shared_part_is_sent_and_measured(name, static):
    state, metrics = rounds(name, static=static)
    bits = FEATURES * 3 * 32
    np.testing.assert_array_equal(metrics.uplink_bits, np.full((ROUNDS, COHORTS.shape[1]), bits))
    np.testing.assert_array_equal(metrics.downlink_bits, np.full((ROUNDS, COHORTS.shape[1]), bits))
    np.testing.assert_allclose(metrics.drift, metrics.update_norm, rtol=1e-5)
    assert_equal(state.params["bias"], FEDERATION.params["bias"])
    assert state.clients["kernel"] is None


# --- parts of a model -------------------------------------------------------------------------------------------------


def model_of(*layers):
    return {layer: {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)} for layer in layers}


def paths(tree):
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]


def test_the_last_layer_is_the_last_in_natural_order():
    model = model_of("layer10", "layer2", "layer9", "conv11")
    shared, personal = split(model, None)
    assert paths(personal) == ["layer10/bias", "layer10/kernel"]
    assert len(paths(shared)) == 6
    assert_equal(merge(shared, personal), model)
    assert paths(split({"params": model}, None)[1]) == ["params/layer10/bias", "params/layer10/kernel"]
    assert paths(split(model_of("layer0"), None)[1]) == ["layer0/kernel"]  # logistic regression: what is there
    assert paths(split([jnp.ones(1)] * 11, None)[1]) == ["10"]


def test_parts_of_variables():
    statistics = {"norm0": {"mean": jnp.zeros(2)}, "layer9": {"mean": jnp.zeros(2)}}
    model = fs.Variables(model_of("layer9", "norm0"), statistics)
    assert paths(split(model, "statistics")[1]) == ["statistics/layer9/mean", "statistics/norm0/mean"]
    assert paths(split(model, "^params/layer9/b")[1]) == ["params/layer9/bias"]
    model = model._replace(params=model_of("layer9", "layer2"))
    shared, personal = split(model, None)
    assert paths(personal) == ["params/layer9/bias", "params/layer9/kernel", "statistics/layer9/mean"]
    assert_equal(merge(shared, personal), model)


@pytest.mark.parametrize(
    ("model", "pattern", "parts"),
    [
        (model_of("a", "b"), "nothing", ("personal: with 'nothing' nothing stays", "a/bias, a/kernel, b/bias")),
        (model_of("a", "b"), ".", ("personal: with '.' no parameter is left to share", "a/bias")),
        (model_of(*"abcd"), "nothing", ("c/kernel, ...",)),
        (jnp.ones(3), None, ("personal: with None no parameter is left to share",)),
        (fs.Variables(model_of("a"), {"m": jnp.ones(1)}), "params", ("no parameter is left to share",)),
        (model_of("a", "b"), "(", ("personal: '(' is no regular expression", "mend it")),
        (model_of("a", "b"), 3, ("personal: 3 is no text",)),
    ],
)
def test_a_pattern_that_makes_no_parts(model, pattern, parts):
    with pytest.raises(fs.InputError) as error:
        split(model, pattern)
    one_line(error, *parts)


@pytest.mark.parametrize("own", [True, False])
def test_a_frozen_part_is_out_of_the_optimizers_sight(own):
    """Weight decay and momentum included; with the losses over all examples, too."""
    params = jax.tree.map(lambda x: x + 1.0, FEDERATION.params)
    tx = optax.chain(optax.add_decayed_weights(0.3), optax.sgd(RATE, momentum=0.9))
    train = quick(lambda p: train_part(loss_fn, tx, p, "bias", DATA, KEY, own=own))
    model, info = train(params)
    moved, frozen = ("bias", "kernel") if own else ("kernel", "bias")
    assert_equal(model[frozen], params[frozen])
    assert not np.allclose(model[moved], params[moved], atol=1e-3)
    rows = jax.tree.map(lambda x: x[:9], FEDERATION.population.examples)
    np.testing.assert_allclose(info.loss_before, loss_fn(params, rows, KEY).mean(), rtol=1e-5)
    np.testing.assert_allclose(info.loss_after, loss_fn(model, rows, KEY).mean(), rtol=1e-5)


def fail(name, *parts, **options):
    with pytest.raises(fs.InputError) as error:
        fs.ALGORITHMS[name](loss_fn, client_tx=optax.sgd(RATE), **options)
    one_line(error, *parts)


def test_options_out_of_range():
    for name in ("fedper", "fedrep", "fedbn"):
        fail(name, "personal: '[' is no regular expression", personal="[")
    fail("fedrep", "head_steps: 0", head_steps=0)
    fail("ditto", "lam: -1", lam=-1)
    fail("pfedme", "lam: nan", lam=float("nan"))
    fail("pfedme", "eta: -0.1", eta=-0.1)
    fail("pfedme", "inner_steps: 1.5", inner_steps=1.5)
    fail("apfl", "alpha: 1.1", "from 0 to 1", alpha=1.1)
    fail("apfl", "alpha: -1", alpha=-1)
    fail("apfl", "alpha_rate: -1", alpha_rate=-1)
    fail("apfl", "adaptive: 'no'", adaptive="no")
    fail("perfedavg", "alpha: -1", alpha=-1)
    fail("perfedavg", "first_order: None", first_order=None)


def test_a_model_without_the_parts_is_refused_before_it_trains():
    for name, start in (("fedbn", "personal: with"), ("fedper", "personal: with 'head'")):
        options = {} if name == "fedbn" else {"personal": "head"}
        algorithm = fs.ALGORITHMS[name](loss_fn, client_tx=optax.sgd(RATE), **options)
        with pytest.raises(fs.InputError) as error:
            fs.init(algorithm, FEDERATION.params, N)
        one_line(error, start, "bias, kernel")
    algorithm = fs.fedrep(loss_fn, client_tx=optax.sgd(RATE), personal="statistics")
    with pytest.raises(fs.InputError) as error:
        fs.init(algorithm, fs.Variables(FEDERATION.params, {"mean": jnp.zeros(2)}), N)
    one_line(error, "personal: 'statistics' is found in statistics only")


# --- batch normalisation ----------------------------------------------------------------------------------------------


def normalising_loss(model, batch, key):
    """Normalises inputs by the batch, and follows its mean in the statistics."""
    x, params = batch["inputs"], model.params
    norm = params["layer0_norm"]
    followed = {"layer0_norm": {"mean": 0.9 * model.statistics["layer0_norm"]["mean"] + 0.1 * x.mean(0)}}
    x = norm["scale"] * (x - x.mean(0)) + norm["shift"]
    return loss_fn(params["layer1"], {"inputs": x, "labels": batch["labels"]}, key), followed


@cache
def normalised(name, **options):
    """The initial model and the state after two rounds, of which client 2 sees none."""
    federation = make_federation(sizes=(8, 4, 12))
    norm = {"scale": jnp.ones(FEATURES), "shift": jnp.zeros(FEATURES)}
    model = fs.Variables(
        {"layer0_norm": norm, "layer1": federation.params}, {"layer0_norm": {"mean": jnp.ones(FEATURES)}}
    )
    algorithm = fs.ALGORITHMS[name](normalising_loss, client_tx=optax.sgd(RATE), **options)
    round_fn = quick(fs.make_round(algorithm, batch_size=4, lanes=2))
    state = fs.init(algorithm, model, 3)
    for _ in range(2):
        state, metrics = round_fn(state, fs.select(federation.population, jnp.asarray([1, -1, 0])), KEY)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, metrics)))
    return federation, model, state, metrics


def test_fedbn_keeps_normalisation_and_statistics_with_the_client():
    federation, model, state, metrics = normalised("fedbn")
    assert_equal(state.params.statistics, model.statistics)
    assert_equal(state.params.params["layer0_norm"], model.params["layer0_norm"])
    assert not np.allclose(state.params.params["layer1"]["kernel"], model.params["layer1"]["kernel"])
    followed = np.ones((3, FEATURES))
    for number in range(2):
        for i in (0, 1):
            size = int(federation.offsets[i + 1] - federation.offsets[i])
            key = jax.random.fold_in(stage_key(KEY, number, TRAIN), i)
            rows = federation.offsets[i] + np.asarray(permuted(key, jnp.int32(size), jnp.arange(size), 0))
            for batch in federation.inputs[rows].reshape(-1, 4, FEATURES):
                followed[i] = 0.9 * followed[i] + 0.1 * batch.mean(0)
    np.testing.assert_allclose(state.clients.statistics["layer0_norm"]["mean"], followed, atol=1e-6)
    scales = np.asarray(state.clients.params["layer0_norm"]["scale"])
    np.testing.assert_array_equal(scales[2], np.ones(FEATURES))
    assert not np.allclose(scales[0], scales[1], atol=1e-4)
    np.testing.assert_array_equal(metrics.uplink_bits, np.array([1, 0, 1]) * (FEATURES + 1) * 3 * 32)


@pytest.mark.parametrize(
    "name", ["apfl", pytest.param("ditto", marks=pytest.mark.slow), "perfedavg", "fedrep", "pfedme"]
)
def test_statistics_that_are_shared_are_averaged(name):
    """They follow the inputs, once a step where a step is one pass over the batch, hence exactly as in FedAvg."""
    _, model, state, _ = normalised(name)
    expected = normalised("fedavg")[2].params.statistics["layer0_norm"]["mean"]
    got = state.params.statistics["layer0_norm"]["mean"]
    if name in ("fedrep", "pfedme"):  # several passes a batch
        assert not np.allclose(got, model.statistics["layer0_norm"]["mean"], atol=1e-2)
    else:
        np.testing.assert_allclose(got, expected, atol=1e-6)


# --- what a client predicts with --------------------------------------------------------------------------------------


def two_class_loss(params, batch, key):
    """The last layer scales and shifts logits: its own scale lets a client turn the classes round."""
    norm = params["norm1"]
    logits = (batch["inputs"] @ params["layer0"]["kernel"]) * norm["scale"] + norm["shift"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])


def accuracy(params, batch):
    norm = params["norm1"]
    logits = (batch["inputs"] @ params["layer0"]["kernel"]) * norm["scale"] + norm["shift"]
    return {"accuracy": (logits.argmax(-1) == batch["labels"]).astype(jnp.float32)}


def turned(seed, per_client=40, clients=5):
    """Clients that agree on inputs; those of odd number call the classes the other way round."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((clients * per_client, 4)).astype(np.float32)
    owner = np.repeat(np.arange(clients), per_client)
    labels = ((inputs @ np.array([2.0, -1.0, 1.0, 0.5]) > 0) ^ (owner % 2 == 1)).astype(np.int32)
    offsets = jnp.arange(clients + 1, dtype=jnp.int32) * per_client
    return fs.Population({"inputs": jnp.asarray(inputs), "labels": jnp.asarray(labels)}, offsets)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_personal_models_beat_the_global_one_where_clients_disagree(name):
    """And evaluating them changes nothing. Client 4 never takes part."""
    options = {"perfedavg": {"alpha": 0.5}, "apfl": {"alpha": 0.9}}.get(name, {})
    algorithm = fs.ALGORITHMS[name](two_class_loss, client_tx=optax.sgd(0.3), **options)
    population, tests = turned(0), turned(1)
    rng = np.random.default_rng(2)
    params = {"layer0": {"kernel": jnp.asarray(rng.standard_normal((4, 2)), jnp.float32)},
              "norm1": {"scale": jnp.ones(2), "shift": jnp.zeros(2)}}  # fmt: skip
    round_fn = fs.make_round(algorithm, batch_size=10, local_epochs=2)
    simulate = quick(lambda s: jax.lax.fori_loop(
        0, 40, lambda _, s: round_fn(s, fs.select(population, jnp.arange(4)), KEY)[0], s))  # fmt: skip
    state = simulate(fs.init(algorithm, params, 5))
    evaluate = quick(fs.make_client_evaluation(algorithm, accuracy, batch_size=10, local_epochs=2))
    everybody = jnp.arange(5)
    before = jax.tree.map(lambda x: np.array(x), state)
    scores = evaluate(state, fs.select(population, everybody), fs.select(tests, everybody), KEY)
    assert_equal(before, jax.tree.map(np.asarray, state))
    globally, personally = np.asarray(scores.before["accuracy"]), np.asarray(scores.after["accuracy"])
    assert globally[:4].mean() < 0.7
    assert personally[:4].mean() > 0.85, personally
    rows = jax.tree.map(lambda x: x[160:], tests.examples)
    if name == "ditto":  # the newcomer's own is the initial model
        np.testing.assert_allclose(personally[4], accuracy(params, rows)["accuracy"].mean(), rtol=1e-5)
    if name == "fedbn":  # the received kernel under the initial normalisation, which the server keeps, too
        np.testing.assert_allclose(personally[4], globally[4])
    if name in ("fedper", "fedrep", "perfedavg", "pfedme"):  # adapts
        assert personally[4] > 0.8
