"""Items made ahead in a thread: the same items in the same order, faults passed on, and nothing left running."""

import subprocess
import sys
import threading
import time

import pytest

from tunesmith.training.prefetch import prefetched


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prefetch"]


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_the_same_items_in_the_same_order(depth):
    assert list(prefetched(iter(range(100)), depth)) == list(range(100))
    assert list(prefetched(iter([]), depth)) == []
    assert list(prefetched(iter([None, (None,), ValueError("an item, not a fault")]), depth))[:2] == [None, (None,)]
    assert threads() == []


def test_made_in_another_thread_and_never_more_than_depth_ahead():
    made, ahead = [], threading.Semaphore(0)

    def source():
        for i in range(10):
            made.append((i, threading.current_thread().name))
            ahead.release()
            yield i

    items = prefetched(source(), depth=3)
    assert made == []  # nothing starts before the first item is asked for
    assert next(items) == 0
    for _ in range(4):  # 0 is taken, 1 to 3 are made ahead
        assert ahead.acquire(timeout=10)
    assert not ahead.acquire(timeout=0.05)
    assert made == [(i, "prefetch") for i in range(4)]
    items.close()


def test_a_fault_is_raised_after_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise RuntimeError("disk gone")

    items = prefetched(source(), depth=5)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(RuntimeError, match="disk gone") as e:
        next(items)
    assert "source" in {frame.name for frame in e.traceback}  # it says where in the iterator it happened
    assert list(items) == []
    assert threads() == []


def test_stopping_early_ends_the_thread_and_closes_the_source_there():
    closed = []

    def source():
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread().name)

    items = prefetched(source())
    assert next(items) == 0
    items.close()
    assert closed == ["prefetch"]
    assert threads() == []
    for _ in prefetched(source()):  # a loop that is left drops its generator
        break
    assert closed == ["prefetch"] * 2
    assert threads() == []


def test_a_fault_of_the_consumer_ends_the_thread():
    def consumer():
        for item in prefetched(iter(range(1000))):
            raise KeyError(item)

    with pytest.raises(KeyError):
        consumer()
    assert threads() == []


def test_waiting_costs_no_processor_time():
    release = threading.Event()

    def source():
        yield 0
        release.wait()
        yield 1

    items = prefetched(source())
    next(items)
    timer = threading.Timer(0.5, release.set)
    timer.start()
    before = time.process_time()
    assert next(items) == 1  # half a second of waiting in both threads
    assert time.process_time() - before < 0.1
    timer.join()
    items.close()


def test_depth_below_one_is_refused_at_once():
    with pytest.raises(ValueError, match="depth is 0"):
        prefetched(iter([]), 0)


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "raise RuntimeError"])
def test_the_interpreter_ends_with_items_still_being_made(end):
    """A generator that lives in a module's variable is never closed: the exit must not wait for it or crash in its thread."""
    code = (
        "import itertools, sys\n"
        "from tunesmith.training.prefetch import prefetched\n"
        "items = prefetched(itertools.count())\n"
        f"assert next(items) == 0\n{end}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == {"pass": 0, "sys.exit(3)": 3}.get(end, 1)
    assert b"Fatal" not in done.stderr
