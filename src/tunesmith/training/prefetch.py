"""Work ahead: an iterator run in a background thread, so that the host's preparation overlaps with the device's work."""

import atexit
import threading
from collections.abc import Generator, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
_LAST_WAIT = 5.0  # seconds; the longest that the interpreter waits, as it ends, for an item under way


def prefetched(iterator: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """Yield the iterator's items in order, up to `depth` of them made ahead by a background thread.

    The thread starts when the first item is asked for. An exception of the iterator is raised here, after the items
    before it. Closing the generator (or dropping it) ends the thread after the item under way and closes the iterator,
    in that thread. ValueError where depth is below 1.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}, expected at least 1")
    return _consume(iterator, depth)


def _consume(iterator: Iterator[T], depth: int) -> Generator[T, None, None]:
    made: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()  # None: the end
    room, stopped = threading.Semaphore(depth), threading.Event()

    def produce() -> None:
        end: BaseException | None = None
        try:
            while room.acquire() and not stopped.is_set():
                made.put((next(iterator),))
        except StopIteration:
            pass
        except BaseException as error:  # whatever it is belongs to the consumer
            end = error
        finally:
            try:
                getattr(iterator, "close", lambda: None)()
            except BaseException as error:
                end = end or error
            made.put(end)

    def stop(seconds: float | None = None) -> None:
        stopped.set()
        room.release()
        thread.join(seconds)

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    atexit.register(stop, _LAST_WAIT)  # a thread inside torch while the interpreter goes down would crash it
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item[0]
    finally:
        stop()
        atexit.unregister(stop)
