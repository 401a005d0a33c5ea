"""Tasks in parallel: in order, one OpenMP thread each, with results independent of threads, and cancelled by errors."""

import itertools
import logging
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llgae_cli import threads
from llgae_cli.errors import Interrupted
from llgae_cli.models import LLGAE
from llgae_cli.tasks import Samples
from llgae_cli.threads import CancelledError, check_cancelled, run_parallel
from llgae_cli.training import ClosedForm
from llgae_cli.training.initialisation import Restarts
from llgae_cli.training.statistics import even_chunk_size, split_into_shards

pytestmark = pytest.mark.numeric


@pytest.fixture
def torch_threads() -> Iterator[Any]:
    """A function that sets the number of torch's threads; it is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_are_in_order_and_each_task_has_one_openmp_thread(torch_threads: Any, count: int) -> None:
    torch_threads(count)
    results: list[tuple[int, int]] = []
    run_parallel(lambda i: (i, torch.get_num_threads()), range(20), results.append)
    assert results == [(i, 1) for i in range(20)]
    assert torch.get_num_threads() == count


def test_tasks_run_at_the_same_time(torch_threads: Any) -> None:
    torch_threads(3)
    met = threading.Barrier(3)
    run_parallel(lambda i: met.wait(60), range(3), lambda result: None)


def test_an_error_cancels_the_other_tasks(torch_threads: Any) -> None:
    torch_threads(2)
    started, cancelled = threading.Event(), []

    def work(i: int) -> None:
        if i == 0:
            started.wait(60)
            raise ZeroDivisionError
        started.set()
        try:
            while True:
                check_cancelled()
        except CancelledError:
            cancelled.append(i)
            raise

    with pytest.raises(ZeroDivisionError):
        run_parallel(work, range(9), lambda result: None)
    assert 1 in cancelled and set(cancelled) <= {1, 2, 3}  # those that ran, or were next; the others never started


def test_nested_tasks_run_in_the_same_thread_and_in_idle_ones(torch_threads: Any) -> None:
    torch_threads(2)
    results: list[list[tuple[int, int]]] = []

    def work(i: int) -> list[tuple[int, int]]:
        inner: list[tuple[int, int]] = []
        run_parallel(lambda j: (j, torch.get_num_threads()), range(50), inner.append)
        return inner

    run_parallel(work, range(4), results.append)
    assert results == [[(j, 1) for j in range(50)]] * 4
    # With one task, the other thread is idle and runs some of its nested tasks.
    met, names = threading.Barrier(2), set()

    def meet(j: int) -> None:
        names.add(threading.current_thread().name)
        met.wait(60)

    run_parallel(lambda i: run_parallel(meet, range(2), lambda _: None), [0], lambda _: None)
    assert len(names) == 2


def test_a_nested_call_runs_later_tasks_while_it_waits_for_one_in_another_thread(torch_threads: Any) -> None:
    torch_threads(2)
    begun, last_done = threading.Event(), threading.Event()
    results: list[bool] = []

    def work(j: int) -> bool:  # tasks 0 and 1 end only if another thread takes the next one
        if j == 0:
            return begun.wait(60)
        (begun if j == 1 else last_done).set()
        return last_done.wait(60)

    run_parallel(lambda i: run_parallel(work, range(3), results.append), [0], lambda _: None)
    assert results == [True] * 3


def test_an_error_in_a_later_nested_task_is_raised_after_the_results_before_it(torch_threads: Any) -> None:
    torch_threads(2)
    begun, failed = threading.Event(), threading.Event()
    results: list[int] = []

    def work(j: int) -> int:
        if j == 0:
            begun.set()
            assert failed.wait(60)
        if j == 1:
            failed.set()
            raise ZeroDivisionError
        return j

    def items() -> Iterator[int]:
        yield 0
        assert begun.wait(60)  # another thread has task 0
        yield 1

    class Items(list[int]):
        def __iter__(self) -> Iterator[int]:
            return items()

    with pytest.raises(ZeroDivisionError):
        run_parallel(lambda i: run_parallel(work, Items([0, 1]), results.append), [0], lambda _: None)
    assert results == [0]


def test_an_error_in_a_nested_task_cancels_all(torch_threads: Any) -> None:
    torch_threads(2)

    def fail(j: int) -> None:
        if j == 3:
            raise ZeroDivisionError
        check_cancelled()

    with pytest.raises(ZeroDivisionError):
        run_parallel(lambda i: run_parallel(fail, range(9), lambda _: None), range(3), lambda _: None)
    done: list[int] = []
    run_parallel(lambda i: i, range(5), done.append)
    assert done == list(range(5))


def cloud(n: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    k = generator.integers(4, size=n)
    centres = 4 * generator.normal(size=(4, 6))
    return (centres[k] + generator.normal(size=(n, 6)) * [3, 2, 1, 1, 0.5, 0.5]).astype(np.float32)


def trainer(array: np.ndarray, **options: Any) -> ClosedForm:
    options = {"seed": 3, "restarts": 3, "moves": 4, "tol": 0.0, "dtype": torch.float32, **options}
    return ClosedForm(LLGAE(4, array.shape[1], 2), Samples(array, centring="none"), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_does_not_depend_on_the_number_of_threads(
    torch_threads: Any, messages: list[str], dtype: torch.dtype
) -> None:
    array, results = cloud(13_000), []
    for count in (1, 2, 3):
        torch_threads(count)
        messages.clear()
        one = trainer(array, dtype=dtype)
        one.initialise()
        results.append((list(messages), [one.epoch()["train_mean_l2"] for _ in range(3)]))
    assert results[0] == results[1] == results[2]
    assert len(results[0][0]) == 3


@pytest.mark.parametrize("done", [1, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_complete_restarts_survive_an_interrupt(
    torch_threads: Any, monkeypatch: pytest.MonkeyPatch, messages: list[str], done: int, count: int
) -> None:
    torch_threads(count)
    array = cloud(3000)
    whole, first, second = (trainer(array) for _ in range(3))
    whole.initialise()
    expected = list(messages)
    assert len(expected) == 3 and not first.use_best_restart()
    messages.clear()

    class Interrupting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(messages) == done:
                raise Interrupted(2)

    handler = Interrupting()
    package = logging.getLogger("llgae_cli")
    package.addHandler(handler)
    try:
        with pytest.raises(Interrupted):
            first.initialise()
    finally:
        package.removeHandler(handler)
    assert first.use_best_restart()
    model = first.model
    assert bool(model.mu.any()) and bool(model.W.any())
    seeds = []
    run_one = Restarts.run_one
    monkeypatch.setattr(Restarts, "run_one", lambda self, seed: seeds.append(seed) or run_one(self, seed))
    second.load_state_dict(first.state_dict())
    second.initialise()
    assert len(seeds) == 3 - done and messages == expected
    for _ in range(3):
        assert whole.epoch() == second.epoch()


@pytest.mark.parametrize("n", [0, 1, 5999, 6000, 60_000, 10**6])
@pytest.mark.parametrize("K", [1, 1000])
def test_shards_cover_all_rows_and_have_a_least_size(n: int, K: int) -> None:
    parts = split_into_shards(7, 7 + n, K)
    assert parts[0][0] == 7 and parts[-1][1] == 7 + n
    assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))
    assert len(parts) in (1, 2, 4, 8, 16) and (len(parts) == 1 or n / len(parts) >= max(3000, 8 * K))


@pytest.mark.parametrize(("n", "most", "size"), [(0, 5, 1), (5, 5, 5), (6, 5, 3), (10, 4, 4), (9, 4, 3), (3, 10, 3)])
def test_chunks_leave_no_small_rest(n: int, most: int, size: int) -> None:
    assert even_chunk_size(n, most) == size


@pytest.mark.parametrize(
    ("given", "count"), [("3", 3), (" 2,4", 2), ("", None), ("0", None), ("-1", None), ("many", None), ("9" * 30, None)]
)
def test_without_torch_the_environment_or_the_cores_decide(
    monkeypatch: pytest.MonkeyPatch, given: str, count: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads.count_threads() == torch.get_num_threads()
    monkeypatch.delitem(sys.modules, "torch")
    assert threads.count_threads() == (count or threads.usable_cores())


def test_threads_from_before_torch_was_loaded_are_not_used_after_it(
    torch_threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    met, results = threading.Barrier(2), []
    with monkeypatch.context() as without:
        without.delitem(sys.modules, "torch")
        run_parallel(lambda i: met.wait(60), range(2), lambda result: None)
    run_parallel(lambda i: torch.get_num_threads(), range(20), results.append)
    assert results == [1] * 20


def test_a_limit_on_numpys_threads_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with threads.single_threaded_blas():
        assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "5")
    with threads.single_threaded_blas():
        assert os.environ["OPENBLAS_NUM_THREADS"] == "5"


def test_waiting_threads_sleep_unless_the_user_set_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads.WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    threads.set_wait_policy()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.delenv("GOMP_SPINCOUNT")
    threads.set_wait_policy()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


def test_the_entry_point_sets_the_policy_before_torch_is_imported() -> None:
    code = (
        "import sys, os, llgae_cli.threads as t\n"
        "before = t.set_wait_policy\n"
        "t.set_wait_policy = lambda: (before(), print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY']))\n"
        "sys.argv = ['llgae', '--version']\n"
        "from llgae_cli.__main__ import main\n"
        "main()"
    )
    environment = {key: value for key, value in os.environ.items() if key not in threads.WAITING}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.splitlines()[0] == "False passive", run.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_freed_arrays_of_a_chunk_are_used_again_without_new_pages() -> None:
    program = """if True:
        import ctypes, resource
        from llgae_cli.threads import keep_freed_memory
        keep_freed_memory()
        libc, size = ctypes.CDLL(None), 12 << 20
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        def use():
            arrays = [libc.malloc(size) for _ in range(4)]
            for array in arrays:
                libc.memset(array, 1, size)
            for array in arrays:
                libc.free(array)
        use()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            use()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # of 120,000 pages


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "nonsense\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_a_containers_quota_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.usable_cores(tmp_path) == cores
