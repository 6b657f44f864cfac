"""Attacks against plain NumPy, and what they do to a training that is robust or not."""

from functools import lru_cache, partial
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import BATCH, SIZES, assert_close, assert_equal, make_algorithm, make_federation, one_line

import fedjax_sim as fs
from fedjax_sim import attacks
from fedjax_sim.attacks import DATA_ATTACKS, MESSAGE_ATTACKS, attacked, backdoor, label_flip, malicious, triggered
from fedjax_sim.attacks.sent import quantile
from fedjax_sim.core.aggregate import mean
from fedjax_sim.data import SOURCES, federate, from_clients, iid
from fedjax_sim.models import build_model

N, KEY = len(SIZES), jax.random.key(5)
WHO = np.array([True, False, False, True, False, False])
COHORT = np.array([3, 1, -1, 0, 4, 5], np.int32)


# --- who --------------------------------------------------------------------------------------------------------------


def test_exactly_the_fraction_is_malicious_and_nested():
    for fraction, count in [(0, 0), (0.1, 2), (0.2, 4), (0.33, 7), (1, 20)]:
        assert malicious(20, fraction, 3).sum() == count
    assert (malicious(20, 0.2, 3) <= malicious(20, 0.5, 3)).all()
    assert malicious(20, 0.2, 3).dtype == bool
    assert any((malicious(20, 0.2, seed) != malicious(20, 0.2, 3)).any() for seed in range(3))


# --- messages ---------------------------------------------------------------------------------------------------------

ATTACKS = {
    "honest": attacks.Attack(lambda messages, *_: messages),
    "sign_flip": attacks.sign_flip(2.0),
    "gaussian": attacks.gaussian(),
    "ipm": attacks.ipm(3.0),
    "alie": attacks.alie(1.5),
    "nan_sender": attacks.nan_sender(),
}


def one_of(choices, number):
    """The attack of a traced number, so that all of them share one program."""
    return attacks.Attack(
        lambda *given: jax.lax.switch(number, [a.forge for a in choices.values()], *given), whole=True
    )


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


@lru_cache
def program(name, lanes, attack=None):
    """A round from the start, jitted: `(number of the attack, cohort) -> (how the model moved, metrics)`."""
    federation = make_federation()

    def one_round(number, ids):
        algorithm = attacked(make_algorithm(name, **OPTIONS[name]), attack or one_of(ATTACKS, number), WHO)
        round_fn = fs.make_round(algorithm, batch_size=BATCH, lanes=lanes)
        state = fs.init(algorithm, federation.params, N)
        after, metrics = round_fn(state, fs.select(federation.population, ids), KEY)
        return jax.tree.map(jnp.subtract, federation.params, after.params), metrics

    return jax.jit(one_round)


OPTIONS = {"fedavg": {"weighting": "uniform"}, "multi_krum": {"attackers": 1}, "median": {}, "norm_bounding": {}}


def sent(name, attack="honest", cohort=COHORT, lanes=1):
    moved, metrics = program(name, lanes)(list(ATTACKS).index(attack), cohort)
    return flat(moved), metrics


def only(*clients):
    return np.array([*clients, *[-1] * (len(COHORT) - len(clients))], np.int32)


GOOD, BAD = [1, 4, 5], [0, 3]
FORGED = {
    "sign_flip": lambda m: -2 * m[BAD],
    "ipm": lambda m: -3 * m[GOOD].mean(0),
    "alie": lambda m: m[GOOD].mean(0) - 1.5 * m[GOOD].std(0),
}


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("name", list(FORGED))
def test_message_attacks_equal_numpy(name, lanes):
    honest = np.array([sent("fedavg", cohort=only(client))[0] for client in range(N)], np.float64)
    messages = honest.copy()
    messages[BAD] = FORGED[name](honest)
    got, metrics = sent("fedavg", name, lanes=lanes)
    np.testing.assert_allclose(got, messages[GOOD + BAD].mean(0), atol=2e-6)
    norms = np.where(COHORT < 0, 0, np.linalg.norm(messages, axis=1)[COHORT])
    np.testing.assert_allclose(metrics.update_norm, norms, rtol=1e-4)


@pytest.mark.parametrize("name", list(ATTACKS))
def test_attacks_do_not_depend_on_lanes_or_on_the_order_of_the_cohort(name):
    moved, metrics = sent("multi_krum", name)
    order = np.array([4, 2, 0, 5, 1, 3])
    again, shuffled = sent("multi_krum", name, COHORT[order], lanes=3)
    np.testing.assert_allclose(again, moved, atol=2e-6)
    np.testing.assert_allclose(shuffled.update_norm, np.asarray(metrics.update_norm)[order], atol=2e-6)


@pytest.mark.parametrize("name", ["sign_flip", "gaussian"])
def test_attacks_that_look_at_nobody_stream(name):
    assert not ATTACKS[name].whole
    moved, _ = program("fedavg", 2, ATTACKS[name])(0, COHORT)
    np.testing.assert_allclose(flat(moved), sent("fedavg", name)[0], atol=2e-6)


@lru_cache
def under_sign_flip(name, **options):
    """Model and metrics after two rounds of everybody, of whom two send five times the opposite."""
    federation = make_federation()
    algorithm = attacked(make_algorithm(name, **options), attacks.sign_flip(5.0), WHO)
    round_fn = jax.jit(fs.make_round(algorithm, batch_size=BATCH, local_steps=2))
    state, cohort = fs.init(algorithm, federation.params, N), fs.select(federation.population, np.arange(N))
    for _ in range(2):
        state, metrics = round_fn(state, cohort, KEY)
    return state.params, metrics


@pytest.mark.parametrize(
    ("name", "options", "weighting"),
    [
        ("afl", {"gamma": 0.0}, "uniform"),  # sends its weight and its id
        ("ifca", {"clusters": 1}, "examples"),  # its cluster, a whole number
        pytest.param("fednova", {}, "examples", marks=pytest.mark.slow),  # how far its optimizer moves
    ],
)
def test_what_is_fedavg_without_attackers_is_fedavg_with_them(name, options, weighting):
    """Who forged what weighs or names it would take itself out."""
    got, metrics = under_sign_flip(name, **options)
    expected, plain = under_sign_flip("fedavg", weighting=weighting)
    assert_close(got, expected, atol=1e-5)
    np.testing.assert_allclose(metrics.weight, plain.weight, rtol=1e-5)


def test_attackers_of_qffl_keep_their_weight_and_claim_a_number_over_0():
    """With q = 0 all weigh alike and `h` is the bound for all, five times that from two of six: 6 / 14 of the step."""
    start = make_federation().params
    algorithms = {"qffl": {"q": 0.0, "lipschitz": 1.0}, "fedavg": {"weighting": "uniform"}}
    moved = {}
    for name, options in algorithms.items():
        algorithm = attacked(make_algorithm(name, **options), attacks.sign_flip(5.0), WHO)
        round_fn = jax.jit(fs.make_round(algorithm, batch_size=BATCH))
        cohort = fs.select(make_federation().population, np.arange(N))
        state, metrics = round_fn(fs.init(algorithm, start, N), cohort, KEY)
        np.testing.assert_allclose(metrics.weight, np.full(N, 1 / N), rtol=1e-5)
        moved[name] = flat(jax.tree.map(jnp.subtract, start, state.params))
    np.testing.assert_allclose(moved["qffl"], moved["fedavg"] * 6 / 14, atol=1e-5)


def test_afl_listens_to_attackers_who_claim_a_large_loss():
    _, metrics = under_sign_flip("afl", gamma=0.05)
    assert np.asarray(metrics.weight)[WHO].sum() > 2 / N


@pytest.mark.parametrize("name", ["gaussian", "alie"])
def test_leaves_that_are_no_floating_point_numbers_pass_untouched(name):
    def run(received, memory, data, key):
        message, memory, info = plain.client.run(received, memory, data, key)
        return message._replace(extra={"id": data.id, "odd": data.id % 2 == 1}), memory, info

    def like(received):
        return plain.client.like(received)._replace(extra={"id": jnp.int32(0), "odd": jnp.bool(False)})

    plain, average, seen = make_algorithm("fedavg"), mean(), []

    def receive(messages, ids, sizes, key):
        seen.append(messages.extra)
        return messages._replace(extra=()), sizes

    def init(message):
        return average.init(message._replace(extra=()))

    inner = average._replace(receive=receive, init=init, whole=True)
    algorithm = plain._replace(client=plain.client._replace(run=run, like=like), aggregator=inner)
    algorithm = attacked(algorithm, MESSAGE_ATTACKS[name](), WHO)
    federation, ids = make_federation(), np.array([3, 1, 0])
    round_fn = fs.make_round(algorithm, batch_size=max(SIZES), lanes=3)
    round_fn(fs.init(algorithm, federation.params, N), fs.select(federation.population, ids), KEY)
    assert_equal(seen[0], {"id": ids, "odd": ids % 2 == 1})


@pytest.mark.parametrize("name", list(ATTACKS))
def test_a_cohort_without_attackers_is_left_alone(name):
    assert_equal(sent("fedavg", name, only(1, 4, 5)), sent("fedavg", "honest", only(1, 4, 5)))


def test_attackers_among_themselves_have_nobody_to_imitate():
    assert not sent("fedavg", "ipm", only(0, 3))[0].any()
    assert sent("fedavg", "sign_flip", only(0, 3))[0].any()


def test_noise_has_its_scale_and_is_nobody_elses():
    rng_messages = {"a": jnp.zeros((4, 300, 70)), "b": jnp.zeros((4, 1000))}
    forge = jax.jit(attacks.gaussian(3.0).forge)
    present = jnp.ones(4, bool)
    drawn = forge(rng_messages, jnp.arange(4), present, present, KEY)
    rows = np.concatenate([np.asarray(drawn["a"]).reshape(4, -1), np.asarray(drawn["b"])], axis=1)
    assert abs(rows.std() / 3 - 1) < 0.02
    assert abs(rows.mean()) < 0.06
    assert np.abs(np.corrcoef(rows) - np.eye(4)).max() < 0.03
    only = forge(jax.tree.map(lambda m: m[2:3], rng_messages), jnp.array([2]), present[2:3], present[2:3], KEY)
    assert_equal(jax.tree.map(lambda m: m[0], only), jax.tree.map(lambda m: m[2], drawn))


@pytest.mark.parametrize(("clients", "attackers"), [(50, 12), (50, 24), (25, 10), (10, 4), (10, 1), (9, 4), (3, 3)])
def test_how_little_is_enough(clients, attackers):
    supporters = clients // 2 + 1 - attackers
    honest = clients - attackers
    share = min(max((honest - supporters) / honest, 0.5), 1 - 1e-6) if honest else 1 - 1e-6
    wanted = NormalDist().inv_cdf(share)
    got = jax.jit(quantile)(clients, attackers)
    if honest:
        np.testing.assert_allclose(got, wanted, atol=2e-4, rtol=1e-3)
    assert np.isfinite(got)


@pytest.mark.parametrize("name", ["median", "multi_krum", "norm_bounding"])
def test_robust_rules_leave_out_what_is_not_finite_and_say_so(name):
    moved, metrics = sent(name, "nan_sender")
    np.testing.assert_array_equal(metrics.rejected, [True, False, False, True, False, False])
    assert not np.asarray(metrics.weight)[[0, 2, 3]].any()
    assert np.isfinite(moved).all()
    assert moved.any()
    np.testing.assert_allclose(moved, sent(name, cohort=only(1, 4, 5))[0], atol=2e-6)
    assert np.isnan(sent("fedavg", "nan_sender")[0]).all()


@pytest.mark.parametrize("name", ["sign_flip", "gaussian", "ipm", "alie"])
def test_the_scale_of_an_attack_may_be_traced(name):
    messages = {"a": jnp.linspace(-1, 1, 12).reshape(4, 3)}

    def forged(scale):
        wicked = jnp.array([True, False, False, False])
        return MESSAGE_ATTACKS[name](scale).forge(messages, jnp.arange(4), jnp.ones(4, bool), wicked, KEY)

    together = jax.jit(jax.vmap(forged))(jnp.array([0.5, 2.0]))
    assert_close(jax.tree.map(lambda x: x[1], together), forged(2.0))


def test_a_list_of_the_wrong_length_is_found_when_the_state_is_made():
    algorithm = attacked(make_algorithm("fedavg"), attacks.nan_sender(), WHO[:4])
    with pytest.raises(fs.InputError) as error:
        fs.init(algorithm, make_federation().params, N)
    one_line(error, "who: 4 bools for 6 clients")


# --- examples ---------------------------------------------------------------------------------------------------------


def images(dtype=np.uint8):
    rng = np.random.default_rng(0)

    def client(size):
        shades = rng.integers(0, 200, (size, 9, 8, 2)) if dtype == np.uint8 else rng.random((size, 9, 8, 2)) / 2
        return {"inputs": shades.astype(dtype), "labels": rng.integers(0, 4, size).astype(np.int32)}

    return from_clients([client(s) for s in (10, 7, 0, 5, 4, 12)], test=client(30), classes=4)


def test_flipped_labels_are_those_of_malicious_clients_alone():
    data = images()
    changed = label_flip(data, WHO)
    for i in range(N):
        labels = data.client(i)["labels"]
        np.testing.assert_array_equal(changed.client(i)["labels"], 3 - labels if WHO[i] else labels)
    assert changed.examples["inputs"] is data.examples["inputs"]
    assert changed.test is data.test
    assert_equal(label_flip(changed, WHO).examples, data.examples)


@pytest.mark.parametrize(("dtype", "bright"), [(np.uint8, 255), (np.float32, 1.0)])
def test_a_backdoor_stamps_its_share_of_the_rows_and_labels_them(dtype, bright):
    data = images(dtype)
    changed = backdoor(data, WHO, target=2, share=0.4)
    for i in range(N):
        before, after = data.client(i), changed.client(i)
        stamped = (after["inputs"][:, -2:, -2:] == bright).all((1, 2, 3))
        assert stamped.sum() == (round(0.4 * len(stamped)) if WHO[i] else 0)
        np.testing.assert_array_equal(after["labels"], np.where(stamped, 2, before["labels"]))
        wanted = before["inputs"].copy()
        wanted[stamped, -2:, -2:] = bright
        np.testing.assert_array_equal(after["inputs"], wanted)
    assert changed.test is data.test
    more = backdoor(data, WHO, target=2, share=0.8)
    assert ((changed.examples["inputs"] != data.examples["inputs"]) <= (more.examples["inputs"] == bright)).all()


def test_the_trigger_on_a_test_set_measures_the_attack():
    test = images().test
    assert test is not None
    stamped = triggered(test, size=3, value=200)
    assert (stamped["inputs"][:, -3:, -3:] == 200).all()
    assert_equal(stamped["inputs"][:, :-3], test["inputs"][:, :-3])
    assert stamped["labels"] is test["labels"]
    success = triggered(test, target=2)
    assert len(success["labels"]) == len(success["inputs"]) == (test["labels"] != 2).sum()
    assert (success["labels"] == 2).all()


def test_the_trigger_of_a_table_is_a_pattern_in_its_last_features():
    table = {"inputs": np.zeros((4, 5), np.float32), "labels": np.arange(4)}
    np.testing.assert_array_equal(triggered(table)["inputs"][2], [0, 0, 3, -3, 3])
    np.testing.assert_array_equal(triggered(table, size=1, value=7)["inputs"][0], [0, 0, 0, 0, 7])
    assert not table["inputs"].any()


# --- a training -------------------------------------------------------------------------------------------------------

CLIENTS, ROUNDS = 10, 20
HARM = malicious(CLIENTS, 0.3, 1)
STRONG = ATTACKS | {
    "sign_flip": attacks.sign_flip(20.0),
    "gaussian": attacks.gaussian(10.0),
    "ipm": attacks.ipm(20.0),
    "alie": attacks.alie(30.0),
}


@pytest.fixture(scope="module")
def digits():
    """Ten clients, of whom the malicious three hold five times as much as the others: two thirds of the examples."""
    dataset = SOURCES["digits"]()
    parts = iter(iid(dataset.train["labels"], int(CLIENTS + 4 * HARM.sum()), seed=0))
    return federate(dataset, [np.concatenate([next(parts) for _ in range(5 if bad else 1)]) for bad in HARM])


@pytest.fixture(scope="module")
def scores(digits):
    """`scores(rule, attack on messages, data) -> (accuracy, success of the backdoor)`; one program for each rule."""
    model, ids = build_model("logistic", (8, 8, 1), 10), jnp.arange(CLIENTS, dtype=jnp.int32)
    tests = [jax.tree.map(jnp.asarray, t) for t in (digits.test, triggered(digits.test, target=0))]

    def score(rule, number, population):
        algorithm = fs.ALGORITHMS[rule](model.loss_fn, client_tx=optax.sgd(0.5))
        algorithm = attacked(algorithm, one_of(STRONG, number), HARM)
        round_fn = fs.make_round(algorithm, batch_size=33)  # of 65 examples; 32 would leave one for a step of its own

        def one(state, _):
            return round_fn(state, fs.select(population, ids), KEY)[0], ()

        params = jax.lax.scan(one, fs.init(algorithm, model.params, CLIENTS), length=ROUNDS)[0].params
        return [model.metric_fn(params, test)["accuracy"].mean() for test in tests]

    compiled = {rule: jax.jit(partial(score, rule)) for rule in ("fedavg", "median")}
    return lambda rule, attack, data: compiled[rule](list(STRONG).index(attack), data.population())


def test_without_attackers_both_learn_and_no_trigger(digits, scores):
    for rule in ("fedavg", "median"):
        accuracy, success = scores(rule, "honest", digits)
        assert accuracy > 0.85
        assert success < 0.1


@pytest.mark.parametrize("attack", list(MESSAGE_ATTACKS))
def test_fedavg_fails_under_every_attack_on_messages_and_the_median_holds(digits, scores, attack):
    assert scores("fedavg", attack, digits)[0] < 0.4
    assert scores("median", attack, digits)[0] > 0.6


def test_fedavg_fails_under_every_attack_on_data_and_the_median_holds(digits, scores):
    assert list(DATA_ATTACKS) == ["label_flip", "backdoor"]
    flipped, stamped = label_flip(digits, HARM), backdoor(digits, HARM)
    assert scores("fedavg", "honest", flipped)[0] < 0.4
    assert scores("median", "honest", flipped)[0] > 0.7
    assert scores("fedavg", "honest", stamped)[1] > 0.9  # and its accuracy shows nothing
    assert scores("fedavg", "honest", stamped)[0] > 0.8
    assert scores("median", "honest", stamped)[1] < 0.3


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: malicious(0, 0.2), ["num_clients", "0"]),
        (lambda: malicious(5, 1.2), ["fraction", "1.2"]),
        (lambda: malicious(5, 0.2, -1), ["seed", "-1"]),
        (lambda: attacks.sign_flip(0), ["scale", "over 0"]),
        (lambda: attacks.gaussian(-1), ["scale", "-1"]),
        (lambda: attacks.ipm(0), ["epsilon", "over 0"]),
        (lambda: attacks.alie(-1), ["z", "least 0"]),
        (lambda: attacked(make_algorithm("fedavg"), attacks.ipm(), [0, 3]), ["who: int64[2]", "bool[N]"]),
        (lambda: label_flip(images(), WHO[:3]), ["who: 3 bools for 6 clients"]),
        (lambda: label_flip(images()._replace(classes=None), WHO), ["classes None"]),
        (lambda: label_flip(images()._replace(classes=3), WHO), ["labels from 0 to 3"]),
        (lambda: backdoor(images(), WHO, target=4), ["target: 4", "0 to 3"]),
        (lambda: backdoor(images(), WHO, share=2), ["share: 2"]),
        (lambda: backdoor(images(), WHO, seed=-1), ["seed", "-1"]),
        (lambda: backdoor(images(), WHO, size=9), ["size: 9 of 8 pixels"]),
        (lambda: triggered({"inputs": np.zeros((3, 4))}), ["'inputs' and 'labels'"]),
        (lambda: triggered({"inputs": np.zeros((3, 4, 2)), "labels": np.zeros(3)}), ["float64[4, 2]", "images"]),
        (lambda: triggered({"inputs": np.zeros((3, 4)), "labels": np.zeros(3)}, value=np.nan), ["value", "nan"]),
    ],
)
def test_bad_input_is_one_line(make, parts):
    with pytest.raises(fs.InputError) as error:
        make()
    one_line(error, *parts)
