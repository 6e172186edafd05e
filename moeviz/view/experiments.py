"""The experiment that is on: what to watch for, its arms as buttons, and the paper's figures."""

from html import escape
from typing import TYPE_CHECKING

from PySide6.QtWidgets import QHBoxLayout, QPushButton, QWidget

from moeviz.domain.experiments import Experiment
from moeviz.domain.settings import Settings, Value
from moeviz.view.guide import button, column, label
from moeviz.view.theme import GRID

if TYPE_CHECKING:
    from moeviz.view.window import Window


class Experiments(QWidget):
    """A page of the guide."""

    def __init__(self, window: "Window") -> None:
        super().__init__()
        self._window = window
        self.experiment: Experiment | None = None
        self.arms: dict[str, QPushButton] = {}
        self.words, self.figures = label(), label()
        self._buttons = QHBoxLayout()
        self._buttons.setSpacing(GRID // 2)
        lines = column(self)
        lines.addWidget(self.words)
        lines.addLayout(self._buttons)
        lines.addWidget(self.figures)
        lines.addStretch(1)
        window.guide.add(self)

    def begin(self, experiment: Experiment) -> None:
        """Train a new model with the settings of an experiment; ask first if that loses a trained one."""

        def begin() -> None:
            window, settings = self._window, Settings().with_values(experiment.settings)
            title = f"Starting: {experiment.title}"
            window.start(window.make_session(settings, window.device, None), title, training=True)
            self._show(experiment)
            self.show_settings(settings)

        self._window.stakes.if_not_replaced(f"“{experiment.title}”", begin)

    def _show(self, experiment: Experiment) -> None:
        self.experiment = experiment
        for arm in self.arms.values():
            self._buttons.removeWidget(arm)
            arm.deleteLater()
        self.arms = {}
        for name in experiment.arms if len(experiment.arms) > 1 else ():
            arm = button(name, "Set the knobs of this arm on the running model; R begins it anew")
            arm.setCheckable(True)
            arm.clicked.connect(lambda _=False, name=name: self._take(name))
            self._buttons.addWidget(arm)
            self.arms[name] = arm
        self.words.setText(f"<p>{escape(experiment.watch)}</p>")
        rows = "".join(
            f"<tr><td>{escape(name)}&nbsp;</td><td align=right>{escape(figure)}</td></tr>"
            for name, figure in experiment.figures.items()
        )
        table = f"<table width='100%'>{rows}</table>" if rows else "<p>The paper gives no figure to compare with.</p>"
        self.figures.setText(
            f"<p><b>{escape(experiment.source)}</b></p>{table}<p>{escape(experiment.limits)}</p>"
            f"<p>Measured here by: moeviz experiment {escape(experiment.name)}</p>"
        )
        self._window.guide.show_page(experiment.title, self)
        self._window.layouts.give_back()  # what a lesson has brought

    def show_settings(self, settings: Settings) -> None:
        """Which arm the running model is at, if any."""
        flat = settings.flat()
        for name, arm in self.arms.items():
            assert self.experiment is not None
            arm.setChecked(all(flat[key] == value for key, value in arm_values(self.experiment, name).items()))

    def _take(self, name: str) -> None:
        """An arm: what differs from the running model."""
        assert self.experiment is not None
        flat, values = self._window.settings.flat(), arm_values(self.experiment, name)
        if changed := {key: value for key, value in values.items() if value != flat[key]}:
            self._window.knobs.change(changed)
        self.show_settings(self._window.settings)


def arm_values(experiment: Experiment, arm: str) -> dict[str, Value]:
    """The knobs that tell the arms of an experiment apart, as this one has them."""
    start = Settings().with_values(experiment.settings).flat()
    keys = dict.fromkeys(key for changes in experiment.arms.values() for key in changes)
    return {key: experiment.arms[arm].get(key, start[key]) for key in keys}
