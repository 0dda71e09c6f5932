"""Semi-global matching against all sequences of depths, tried one by one."""

from itertools import product

import numpy as np

from systems.semi_global import semi_global

SLANT, JUMP = 0.15, 0.9


def price(a, b):
    return (0.0, SLANT)[abs(a - b)] if abs(a - b) < 2 else JUMP


def best_line(scores, depth):
    """The best sum of scores [n, D] over a line that ends at its last pixel in this depth, less the best of what came before."""
    n, d = scores.shape
    before = {}
    for line in product(range(d), repeat=n - 1):
        total = sum(scores[k, x] for k, x in enumerate(line)) - sum(price(a, b) for a, b in zip(line, line[1:]))
        before[line[-1]] = max(before.get(line[-1], -np.inf), total)
    return scores[-1, depth] + max(value - price(last, depth) for last, value in before.items()) - max(before.values())


def test_a_line_is_the_best_of_all_sequences():
    scores = np.random.default_rng(0).random((1, 5, 4)).astype(np.float32)
    found = semi_global(scores, SLANT, JUMP)
    for x in range(1, 4):
        for depth in range(4):
            right, left = best_line(scores[0, : x + 1], depth), best_line(scores[0, x:][::-1], depth)
            assert np.isclose(found[0, x, depth], (right + left + 2 * scores[0, x, depth]) / 4, atol=1e-5)  # a column has one pixel


def test_rows_and_columns_count_alike():
    scores = np.random.default_rng(1).random((6, 9, 7)).astype(np.float32)
    assert np.allclose(
        semi_global(scores, SLANT, JUMP),
        semi_global(np.ascontiguousarray(scores.transpose(1, 0, 2)), SLANT, JUMP).transpose(1, 0, 2),
        atol=1e-6,
    )


def test_chance_is_outvoted_and_an_edge_stays():
    """Left half at depth 2, right half at depth 8; single pixels that see something better elsewhere."""
    truth = np.full((12, 12), 2)
    truth[:, 6:] = 8
    scores = np.full((12, 12, 10), 0.1, np.float32)
    np.put_along_axis(scores, truth[..., None], 0.7, 2)
    scores[3, 3, 9] = scores[8, 9, 0] = 0.95
    assert scores.argmax(2)[3, 3] == 9
    assert np.array_equal(semi_global(scores, SLANT, JUMP).argmax(2), truth)
