"""A function in a thread of its own, which no end of the process waits for.

torch's executors are a ThreadPoolExecutor, whose thread the interpreter joins at its end, whatever it waits for, and a
process, which would have to be found and ended when a rank is killed, and whose memory is another interpreter a rank.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs `function` at once."""

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._future: Future[T] = Future()
        self._function = function
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def done(self) -> bool:
        """Whether it has ended, however."""
        return self._future.done()

    def wait(self) -> T:
        """Its result, or what it raised. An interrupt (^C) ends the wait."""
        return self._future.result()

    def _run(self) -> None:
        try:
            result = self._function()
        except BaseException as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(result)
