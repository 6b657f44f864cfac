"""Per-client memory on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import BATCH, SIZES, assert_equal, make_algorithm, one_line

import fedjax_sim as fs
from fedjax_sim.core.host import HostMemory, memory_bytes, with_host_memory

COHORTS = np.array([[0, 3, 4], [5, -1, 3], [2, 4, 0], [3, 1, 2]], np.int32)
KEY = jax.random.key(5)


@pytest.mark.parametrize("name", ["scaffold", pytest.param("ditto", marks=pytest.mark.slow), "fedavg_topk", "fedavg"])
def test_rounds_equal_those_with_memory_on_the_device(federation, tmp_path, name):
    algorithm, n = make_algorithm(name), len(SIZES)
    round_fn = fs.make_round(algorithm, batch_size=BATCH)
    memory = HostMemory(algorithm, federation.params, n, tmp_path / "memory")
    hosted, plain = with_host_memory(round_fn, memory), jax.jit(round_fn)
    small, whole = fs.init(algorithm, federation.params, n, memory_rows=3), fs.init(algorithm, federation.params, n)
    for ids in COHORTS:
        cohort = fs.select(federation.population, ids)
        small, measured = hosted(small, cohort, KEY)
        whole, expected = plain(whole, cohort, KEY)
        assert_equal((small.params, small.server, measured), (whole.params, whole.server, expected))
    everyone = np.arange(n, dtype=np.int32)
    assert_equal(memory.rows(everyone), jax.tree.map(np.asarray, (whole.clients, whole.messages)))
    assert memory.row_bytes == memory_bytes(algorithm, federation.params, n)
    assert memory.row_bytes == sum(x.nbytes // n for x in jax.tree.leaves((whole.clients, whole.messages)))


def test_files_are_sparse_and_unseen_clients_have_the_initial_row(tmp_path):
    params = {"w": jnp.arange(1000.0)}
    algorithm = fs.ditto(lambda p, batch, key: batch["x"] @ p["w"], client_tx=optax.sgd(0.1))
    memory = HostMemory(algorithm, params, 1_000_000, tmp_path / "memory")
    files = list((tmp_path / "memory").iterdir())
    assert sum(f.stat().st_size for f in files) == 4_000 * 1_000_000
    ids = np.array([999_999, -1, 7], np.int32)
    clients, messages = memory.rows(ids)
    for row in jax.tree.leaves(clients)[0]:
        np.testing.assert_array_equal(row, params["w"])
    memory.keep(ids, (jax.tree.map(lambda c: c + np.arange(3)[:, None], clients), messages))
    assert sum(f.stat().st_blocks * 512 for f in files) < 1e6
    rows = jax.tree.leaves(memory.rows(np.array([7, 999_999, 8], np.int32))[0])[0]
    np.testing.assert_array_equal(rows, params["w"] + np.array([[2.0], [0.0], [0.0]]))


def test_rows_of_another_shape_are_refused(federation, tmp_path):
    memory = HostMemory(make_algorithm("scaffold"), federation.params, 3, tmp_path / "memory")
    with pytest.raises(fs.InputError) as error:
        memory.keep(np.array([0, 1]), memory.rows(np.array([0, 1, 2])))
    one_line(error, "rows", "one row per id")


def test_a_folder_in_use_is_refused(federation, tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(fs.InputError) as error:
        HostMemory(make_algorithm("scaffold"), federation.params, 3, tmp_path)
    one_line(error, "folder", "is not empty", "give another")
    with pytest.raises(fs.InputError) as error:
        HostMemory(make_algorithm("scaffold"), federation.params, 3, tmp_path / "something")
    one_line(error, "folder", "something")
