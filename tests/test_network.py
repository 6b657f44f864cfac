"""Links and devices: the laws their draws promise, and the files they are read from."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line
from scipy import stats

from fedjax_sim import InputError
from fedjax_sim import network as net
from fedjax_sim.network import draws
from fedjax_sim.network.gml import parse_gml, paths_to, read_network


def published(name: str) -> Path:
    root = os.environ.get("FEDJAX_SIM_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"FEDJAX_SIM_DATA is not set to a folder that holds {name}/")
    return Path(root) / name


THREE = net.make_profiles([1000, 500, 100], [200, 600, 100], latency_s=[1, 1, 1], seconds_per_step=[1, 0.5, 0])


def test_managed_steps():
    profiles = net.make_profiles(np.ones(4), 1, completeness=[1, 0.3, 0.01, 0])
    assert net.managed_steps(profiles, [0, 1, 2, 3, -1], 10).tolist() == [10, 3, 1, 1, 0]
    assert net.managed_steps(profiles, [0, 1], [0, 7]).tolist() == [0, 3]


def makers():
    yield lambda n, seed: net.lognormal(n, seed, dropout=0.3)
    yield lambda n, seed: net.resampled(THREE, n, seed)


def test_draws_depend_on_seed_and_id_alone():
    for maker in makers():
        few, many, other = maker(50, 1), maker(200, 1), maker(50, 2)
        for name in ("downlink_bps", "uplink_bps"):
            np.testing.assert_array_equal(getattr(few, name), getattr(many, name)[:50])
            assert (getattr(few, name) != getattr(other, name)).any()
    profiles, ids = net.lognormal(200, 0, dropout=0.3), np.random.default_rng(0).permutation(200)
    whole = net.failures(profiles, np.arange(200), 3, 4)
    np.testing.assert_array_equal(net.failures(profiles, ids, 3, 4), whole[ids])
    np.testing.assert_array_equal([net.failures(profiles, ids[i : i + 1], 3, 4)[0] for i in range(9)], whole[ids[:9]])
    assert (net.failures(profiles, np.arange(200), 3, 5) != whole).any()
    assert not net.failures(profiles, np.full(50, -1), 3, 4).any()
    words = draws.uniform(7, draws.ROW, np.arange(-1, 5), 3)
    assert words.tolist() == [draws.uniform_of(7, draws.ROW, i, 3) for i in range(-1, 5)]


def test_failures_have_their_rate():
    failed = sum(int(net.failures(net.constant(10_000, dropout=0.2), np.arange(10_000), 0, r).sum()) for r in range(5))
    assert stats.binomtest(failed, 50_000, 0.2).pvalue > 1e-3


@pytest.mark.parametrize(("field", "median", "sigma"), [
    ("downlink_bps", 4.3e6, 0.48), ("uplink_bps", 3.3e6, 0.70), ("seconds_per_step", 0.05, 0.93)])  # fmt: skip
def test_lognormal_has_its_median_and_its_sigma(field, median, sigma):
    logs = np.log(getattr(net.lognormal(20_000, 5), field))

    def p(location, scale):
        return stats.kstest(logs, stats.norm(np.log(location), scale).cdf).pvalue

    assert p(median, sigma) > 1e-3
    for factor in (2 / 3, 3 / 2):
        assert p(median * factor, sigma) < 1e-6
        assert p(median, sigma * factor) < 1e-6


def test_the_columns_of_a_population_are_uncorrelated():
    profiles = net.lognormal(20_000, 5)
    logs = np.log([profiles.downlink_bps, profiles.uplink_bps, profiles.seconds_per_step])
    assert np.abs(np.corrcoef(logs) - np.eye(3)).max() < 0.03


def test_tables(tmp_path):
    path = tmp_path / "clients.csv"
    path.write_text("uplink_bps, downlink_bps,seconds_per_step\n10,20,0.5\n\n30,40,0.25\n")
    table = net.from_csv(path)
    assert (table.uplink_bps.tolist(), table.downlink_bps.tolist()) == ([10, 30], [20, 40])
    assert (table.seconds_per_step.tolist(), table.completeness.tolist()) == ([0.5, 0.25], [1, 1])
    drawn = net.from_csv(path, num_clients=4000, seed=1)
    assert stats.binomtest(int((drawn.uplink_bps == 10).sum()), 4000).pvalue > 1e-3
    np.testing.assert_array_equal(drawn.downlink_bps, drawn.uplink_bps + 10)
    for text, parts in (
        ("uplink_bps\n1\n", ("downlink_bps",)),
        ("uplink_bps,downlink_bps,speed\n1,1,1\n", ("'speed'", "unknown")),
        ("uplink_bps,downlink_bps\n1,fast\n", ("line 2", "fast")),
        ("uplink_bps,downlink_bps\n1,2\n1\n", ("line 3", "1 cells")),
        ("uplink_bps,downlink_bps\n1,2\n-1,2\n", ("uplink_bps", "client 1", "-1.0")),
        ("uplink_bps,downlink_bps\n", ("no clients",)),
        ("", ("downlink_bps",)),
    ):
        path.write_text(text)
        with pytest.raises(InputError) as error:
            net.from_csv(path)
        one_line(error, "clients.csv", *parts)


GRAPH = """# a comment [
graph [ directed 0 label "a [quoted] one"
  node [ id 7 label "A" ] node [ id 3 label "B" graphics [ x 1.5 ] ] node [ id 5 label "San Jos&#233;" ]
  edge [ source 7 target 3 distance 1000 capacity 5e6 ]
  edge [ source 3 target 5 distance 1000 capacity 2e6 ]
  edge [ source 7 target 5 distance 4000 ]
]"""


def test_a_small_network_by_hand(tmp_path):
    path = tmp_path / "three.gml"
    path.write_text(GRAPH)
    clients = net.from_gml(path, server="A")  # by way of B 25 ms, straight 38 ms
    np.testing.assert_allclose(clients.latency_s, [0, 0.0125, 0.025])
    np.testing.assert_allclose(clients.uplink_bps, [np.inf, 5e6, 2e6])
    np.testing.assert_allclose(net.from_gml(path).latency_s, [0.0125, 0, 0.0125])  # the centre
    assert read_network(path).labels[2] == "San José"
    assert net.round_times(clients, [0, 2], 0, 1e6, 1e6).total.tolist() == pytest.approx([0, 2 * 0.525])
    for old, new, parts in (
        ('label "B"', "label [", ("ends inside",)),
        ("target 5 distance 4000", "target 6 distance 4000", ("link 2", "6")),
        ("distance 4000", "distance -1", ("link 2", "-1")),
        ("capacity 5e6", "capacity 0", ("link 0", "capacity 0")),
        ("id 5", "id 3", ("different ids",)),
        ('label "A"', 'label "A', ("line",)),
        ("graph [ directed", "grid [ directed", ("no graph",)),
        ("id 7 label", "id 7 ] label", ("line",)),
    ):
        path.write_text(GRAPH.replace(old, new))
        with pytest.raises(InputError) as error:
            net.from_gml(path)
        one_line(error, "three.gml", *parts)
    path.write_text(GRAPH.split("edge")[0] + "]")
    with pytest.raises(InputError) as error:
        net.from_gml(path, server="A")
    one_line(error, "no path", "'B'")
    for server, part in (("C", "'C'"), (3, "0 to 2")):
        path.write_text(GRAPH)
        with pytest.raises(InputError) as error:
            net.from_gml(path, server=server)
        one_line(error, "server", part)


def test_gml_values():
    assert parse_gml('a 1 b -2.5 c "x y" d [ e 1e3 e 2 ]') == [
        ("a", 1), ("b", -2.5), ("c", "x y"), ("d", [("e", 1000.0), ("e", 2)])]  # fmt: skip


SIZES = {"gaia": (11, 55), "amazon_us": (22, 231), "geantdistance": (40, 61), "exodus": (79, 147), "ebone": (87, 161)}


@pytest.mark.parametrize("name", list(SIZES))
def test_published_networks(name):
    sites, links = SIZES[name]
    path = published("networks") / f"{name}.gml"
    network = read_network(path)
    assert (len(network.labels), len(network.ends)) == (sites, links)
    far = np.full((sites, sites), np.inf)
    np.fill_diagonal(far, 0)
    for (a, b), latency in zip(network.ends, network.latency_s, strict=True):
        far[a, b] = far[b, a] = min(far[a, b], latency)
    for k in range(sites):  # Floyd and Warshall
        far = np.minimum(far, far[:, k : k + 1] + far[k])
    for site in (0, sites - 1):
        np.testing.assert_allclose(paths_to(network, site)[0], far[site])
    assert net.from_gml(path).latency_s.max() == pytest.approx(far.max(axis=1).min())


def test_published_devices(tmp_path):
    folder = published("devices")
    clients = net.from_devices(folder, 20_000, 3)
    np.testing.assert_array_equal(net.from_devices(folder, 100, 3).uplink_bps, clients.uplink_bps[:100])
    assert np.median(clients.seconds_per_step) == pytest.approx(0.05, rel=0.05)
    assert clients.seconds_per_step.max() / clients.seconds_per_step.min() == pytest.approx(4310 / 105)
    assert 2e6 < np.median(clients.uplink_bps) < 4e6
    for name in ("speed_distri.json", "raw_ai_benchmark_list.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "speed_distri.json").write_text('{"phone": {"down_u": 1, "down_sigma": 0, "up_u": 0, "up_sigma": 0}}')
    with pytest.raises(InputError) as error:
        net.from_devices(tmp_path, 3, 0)
    one_line(error, "speed_distri.json", "up_u", "'phone'", "0")


def test_handwritten_devices(tmp_path):
    (tmp_path / "speed_distri.json").write_text('{"a": {"down_u": 8, "down_sigma": 0, "up_u": 2, "up_sigma": 1}}')
    (tmp_path / "raw_ai_benchmark_list.json").write_text('[{"CPU_F_AI_Score": "10"}, {"CPU_F_AI_Score": " 30"}]')
    clients = net.from_devices(tmp_path, 20_000, 0, median_seconds_per_step=3)
    np.testing.assert_allclose(clients.downlink_bps, 8000)
    assert clients.uplink_bps.mean() == pytest.approx(2000, rel=0.02)
    assert clients.uplink_bps.std() == pytest.approx(1000, rel=0.05)
    assert set(clients.seconds_per_step) == {2, 6}


@pytest.mark.parametrize(("call", "parts"), [
    (lambda: net.make_profiles([1, 0], 1), ("downlink_bps", "client 1", "0.0")),
    (lambda: net.make_profiles([1, 2], [1, -3]), ("uplink_bps", "client 1", "-3.0")),
    (lambda: net.make_profiles([1, np.nan], 1), ("downlink_bps", "client 1", "nan")),
    (lambda: net.make_profiles(1, 1, latency_s=-1), ("latency_s", "client 0", "-1.0")),
    (lambda: net.make_profiles(1, 1, seconds_per_step=np.inf), ("seconds_per_step", "inf")),
    (lambda: net.make_profiles(1, 1, dropout=1.5), ("dropout", "1.5", "0 to 1")),
    (lambda: net.make_profiles([1, 2], [1, 2, 3]), ("profiles", "differ")),
    (lambda: net.make_profiles("fast", 1), ("downlink_bps", "fast")),
    (lambda: net.constant(0), ("num_clients",)),
    (lambda: net.constant(2, downlink_bps=-np.inf), ("downlink_bps", "client 0")),
    (lambda: net.lognormal(5, 0, sigma_uplink=-1), ("sigma_uplink", "-1")),
    (lambda: net.lognormal(5, 0, median_seconds_per_step=0), ("median_seconds_per_step", "0")),
    (lambda: net.lognormal(5, -1), ("seed",)),
])  # fmt: skip
def test_bad_input_is_one_line(call, parts):
    with pytest.raises(InputError) as error:
        call()
    one_line(error, *parts)
