"""Two things at once: a shard is written while the next one is gathered."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager


class Background:
    """Runs one job at a time in a thread of its own."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job, after the one before it has ended.

        Raises:
            Exception: what the job before raised.
        """
        self.wait()
        self._job = self._executor.submit(job)

    def check(self) -> None:
        """Raise what the job raised, if it has ended so; doesn't wait."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the job, and raise what it raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()


@contextmanager
def background() -> Iterator[Background]:
    """A `Background` whose last job has ended when the block is left.

    Also after an error, SIGINT or SIGTERM, so that what the job writes is whole;
    but a second signal ends the process at once.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="write") as executor:
        jobs = Background(executor)
        try:
            yield jobs
            jobs.wait()
        except BaseException:
            with _signals_end_at_once():
                executor.shutdown(wait=True)
            raise


@contextmanager
def _signals_end_at_once() -> Iterator[None]:
    before = {}
    if threading.current_thread() is threading.main_thread():  # only there they can be set
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
