"""Algorithms 3 and 5 to 7 as the thesis writes them: plain loops, views counted 2k-1, 2k from 1.

Nothing here comes from the package.
"""

import math


def interleaved(views):
    """From [first views of all images; second views] to the thesis's order 1, 2 of image 1, then 1, 2 of image 2."""
    half = len(views) // 2
    return [views[i // 2 + half * (i % 2)] for i in range(2 * half)]


def similarities(vectors):
    """S(a, b) for a, b counted from 1, as a dictionary."""
    norm = [math.sqrt(sum(x * x for x in v)) for v in vectors]
    return {
        (a + 1, b + 1): sum(x * y for x, y in zip(u, v, strict=True)) / (norm[a] * norm[b])
        for a, u in enumerate(vectors)
        for b, v in enumerate(vectors)
    }


def as_dictionary(matrix):
    """A matrix in the package's order of views as S(a, b) in the thesis's."""
    order = interleaved(list(range(len(matrix))))
    return {(a + 1, b + 1): matrix[i][j] for a, i in enumerate(order) for b, j in enumerate(order)}


def algorithm_3(s, n, tau):
    def ell(a, b):
        return -math.log(
            math.exp(s[a, b] / tau) / sum(math.exp(s[a, k] / tau) for k in range(1, 2 * n + 1) if k != a)
        )

    return sum(ell(2 * k - 1, 2 * k) + ell(2 * k, 2 * k - 1) for k in range(1, n + 1)) / (2 * n)


def algorithm_6(s, n, alpha):
    mu = set()
    for k in range(1, n + 1):
        if s[2 * k, 2 * k - 1] >= alpha:
            mu.add(k)
    return mu


def algorithm_7(s, n, beta):
    omega = {i: set() for i in range(1, 2 * n + 1)}
    for a in range(1, n + 1):
        for k in range(1, 2 * n + 1):
            if s[2 * a - 1, k] <= beta:
                omega[2 * a - 1].add(k)
            if s[2 * a, k] <= beta:
                omega[2 * a].add(k)
    return omega


def algorithm_5(s, n, mu, omega, tau):
    """Lines 29 to 31; an empty denominator gives 0 and an empty mu gives 0, which the thesis leaves open."""

    def ell(a, b):
        terms = [math.exp(s[a, k] / tau) for k in range(1, 2 * n + 1) if k != a and k in omega[a]]
        return -math.log(math.exp(s[a, b] / tau) / sum(terms)) if terms else 0.0

    if not mu:
        return 0.0
    total = sum(ell(2 * k - 1, 2 * k) + ell(2 * k, 2 * k - 1) for k in range(1, n + 1) if k in mu)
    return total / (2 * len(mu))
