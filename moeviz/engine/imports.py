"""Imports on a thread, beside a window that is to go on meanwhile."""

import importlib
import threading
from collections.abc import Callable


def import_beside(name: str) -> Callable[[], bool]:
    """Import a module and all that it imports. What is returned says whether that is done, and raises what it
    raised."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
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
