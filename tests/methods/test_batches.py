"""The order of training batches: it depends on seed and step alone."""

import numpy as np
import pytest

from bcdlib.methods.parts import fitting


@pytest.mark.parametrize("n, batch_size", [(10, 3), (7, 7), (5, 12), (1, 4), (96, 32)])
def test_batches_are_a_chain_of_permutations(n, batch_size):
    steps = 4 * n
    chain = np.concatenate([fitting.batch_rows(n, batch_size, step, seed=3) for step in range(steps)])
    assert len(chain) == steps * batch_size
    rounds = chain.reshape(-1, n)  # 4 n batch_size rows: a whole number of rounds
    assert (np.sort(rounds, axis=1) == np.arange(n)).all()  # each row once before any twice
    direct = [np.random.default_rng([3, number]).permutation(n) for number in range(len(rounds))]
    assert np.array_equal(chain, np.concatenate(direct))
    if n > 4:
        assert not np.array_equal(rounds[0], rounds[1])


def test_a_batch_depends_on_seed_and_step_only():
    first = fitting.batch_rows(50, 8, 123, seed=1)
    np.random.seed(0)
    fitting.batch_rows(50, 8, 5, seed=2)
    assert np.array_equal(fitting.batch_rows(50, 8, 123, seed=1), first)
    assert first.shape == (8,) and first.dtype == np.int64
    assert not np.array_equal(fitting.batch_rows(50, 8, 123, seed=2), first)
    assert not np.array_equal(fitting.batch_rows(50, 8, 124, seed=1), first)
