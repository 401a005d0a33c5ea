"""The work of restarts (see `initialisation`): its limits, and the operations that its steps are expected to take."""

from llgae_cli.progress import Work
from llgae_cli.training.shrinkage import STRENGTHS, TRIAL_PASSES

SUBSET_ROWS, FINAL_ROWS = 12_000, 30_000  # rows that restarts work on, and those of their last passes
NARROW_SUBSET_ROWS, NARROW_FINAL_ROWS = 6_000, 12_000  # the same of narrow rows, whose components have few parameters
SUBSET_ROWS_EACH = 100  # rows a component, at least
ANNEALING_PASSES = 12  # more give a better result, which the moves that follow reach in less time
ANNEALED_K = 64  # with more components annealing costs minutes and gains little: cells are small and many
MOVE_PASSES = 12  # hard passes after a move before it is judged
RACE_PASSES = 3  # passes of several moves together, before those of the best one
HALF_PASSES = 8  # passes of the two halves of a component over its own samples, to estimate the gain of a move
NARROW_HALF_PASSES = 3  # the same for narrow rows, whose updates are exact
PROMISING_MOVES = 4  # moves tried before all components are halved anew, from other seeds
MOVES, MOVED_K = 60, 64  # moves of a restart, at most, and the largest K that has any
PATIENCE = 12  # moves without success in a row that end the search
PRINCIPAL_ROWS = 12_000  # more rows hardly change the principal directions
SMALL = 2.4  # time of an operation in passes over the samples of a single component, over that in other passes
FINAL_EXPECTED = 5  # passes over more rows, about
FAILED_PASSES = 3  # passes of a move that fails, about


def count_subset_rows(K: int, products: bool) -> tuple[int, int]:
    """Return the number of rows that restarts work on, and of those of their last passes.

    `products`: whether passes use products of the values (see `training.narrow`).
    """
    few, many = (NARROW_SUBSET_ROWS, NARROW_FINAL_ROWS) if products else (SUBSET_ROWS, FINAL_ROWS)
    few = max(few, SUBSET_ROWS_EACH * K)
    return few, max(few, many)


def choose_moves(K: int, products: bool) -> int:
    """Return how many moves a restart tries, at most: where passes use products, it tries several together."""
    return MOVES * (PROMISING_MOVES if products else 1) if K <= MOVED_K else 0


def n_coordinates(E: int, D: int) -> int:
    """Return the number of principal coordinates that restarts work in: ten a latent dimension, at least 64."""
    return min(D, max(64, 10 * E))


def part_of(work: Work, i: int, restarts: int) -> Work:
    """Return the part of the work that restart i of so many reports to."""
    return work.within(f"restart {i + 1} of {restarts}" if restarts > 1 else "restart")


def count_operations(n: int, d: int, K: int, E: int) -> float:
    """Return the operations of a pass over n rows of d values: of the scores and of the statistics."""
    return 2.0 * n * d * (K + 2) * (E + 1)


def count_preparation(few: int, many: int, D: int, d: int) -> float:
    """Return the operations of the principal coordinates of `few` rows, and of the projection of all."""
    return 2.0 * D * d * (9 * min(few, PRINCIPAL_ROWS) + few + many)


def count_shrinkage_trials(n: int, d: int, K: int, E: int) -> float:
    """Return the operations of `choose_strength` on n rows, about."""
    return len(STRENGTHS) * TRIAL_PASSES * (count_operations(n, d, K, E) + 2.0 * n * d * d)


def expect_restarts(
    work: Work, N: int, D: int, K: int, E: int, products: bool, restarts: int, moves: int, chosen: bool
) -> None:
    """Expect the work of restarts, given N rows of data.

    products  whether passes use products of the values (see `training.narrow`)
    chosen    whether the shrinkage is chosen on held-out rows
    """
    few, many = (min(N, rows) for rows in count_subset_rows(K, products))
    d = n_coordinates(E, D)
    work.expect("preparation", count_preparation(few, many, D, d))
    if chosen:
        work.expect("shrinkage", count_shrinkage_trials(many, d, K, E))
    one = count_operations(few, d, K, E)
    annealing = 1 + 2 * ANNEALING_PASSES if 1 < K <= ANNEALED_K else 0
    search = expect_moves(few, d, K, E, products, moves if K > 1 else 0, 0, 0)
    each = (annealing + MOVE_PASSES) * one + search + FINAL_EXPECTED * count_operations(many, d, K, E)
    for i in range(restarts if K > 1 else 1):
        part_of(work, i, restarts if K > 1 else 1).expect("restarts", each)


def expect_moves(n: int, d: int, K: int, E: int, products: bool, moves: int, successes: int, failed: int) -> float:
    """Return the operations that the rest of a search takes, about.

    `moves` more are allowed, `failed` in a row have failed. About K / 2 moves succeed, and then PATIENCE fail. Where
    passes use products, moves are tried in races, of which about K / 2 succeed.
    """
    one, proposal = count_operations(n, d, K, E), count_proposal(n, d, K, E, products)
    together, failing = (PROMISING_MOVES, MOVE_PASSES) if products else (1, FAILED_PASSES * PROMISING_MOVES)
    race = RACE_PASSES * together if products else 0
    more = min(moves / together, max(0.0, K / 2 - successes))
    fail = min(moves - more * together, PATIENCE - failed) / PROMISING_MOVES
    return (more * (race + MOVE_PASSES) + fail * (race + failing)) * one + (more + fail) * proposal


def count_proposal(n: int, d: int, K: int, E: int, products: bool) -> float:
    """Return the operations of `propose_moves` on n rows."""
    passes = NARROW_HALF_PASSES if products else HALF_PASSES
    return count_operations(n, d, K, E) + SMALL * passes * count_operations(n, d, 2, E)
