"""The data of a task by its name."""

from collections.abc import Callable

from moeviz.domain.messages import UserError
from moeviz.domain.places import in_words, split
from moeviz.domain.settings import Settings
from moeviz.moe.tasks import FEATURES, plane, recommendation, search, translation
from moeviz.moe.tasks.data import Data, Vocabulary
from moeviz.moe.tasks.text import load_text


def load_task(name: str, path: str = "") -> Data:
    """The built-in data of a task, or the user's own at `path`. UserError if that cannot be used."""
    loaders: dict[str, Callable[[str], Data]] = {
        "text": load_text,
        "translation": _without_path(name, translation.load),
        "search": _without_path(name, search.load),
        "recommendation": _of_one_path(name, recommendation.load),
        "plane": _of_one_path(name, plane.load),
    }
    return loaders[name](path)


def _without_path(name: str, load: Callable[[], Data]) -> Callable[[str], Data]:
    def checked(path: str) -> Data:
        if path:
            raise UserError(f"The task {name} takes no data of your own; leave data.path empty.")
        return load()

    return checked


def _of_one_path(name: str, load: Callable[[str], Data]) -> Callable[[str], Data]:
    def checked(path: str) -> Data:
        if len(split(path)) > 1:
            raise UserError(
                f"The task {name} takes one file or folder, and data.path names several, {in_words(path)}; name one of "
                "them."
            )
        return load(path)

    return checked


def unknown_tokens(settings: Settings, vocabulary: Vocabulary, text: str) -> int:
    """How many tokens of a probe a model does not know; points are never unknown."""
    if settings.task in FEATURES:
        return 0
    inputs = load_task(settings.task).with_vocabulary(vocabulary).lay_out(text, settings.model.context).inputs
    return int((inputs == 0).sum())
