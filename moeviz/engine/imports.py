"""Imports on a thread, beside a window that is to go on meanwhile."""

import importlib
import threading
from collections.abc import Callable, Sequence


def import_beside(names: Sequence[str]) -> Callable[[], bool]:
    """Import modules by their names, in this order. What is returned says whether that is done, and raises what it
    raised."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for name in names:
                importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            failed.append(error)

    thread = threading.Thread(target=work, name="imports")
    thread.start()

    def done() -> bool:
        if thread.is_alive():
            return False
        if failed:
            raise failed[0]
        return True

    return done
