"""The experiment that is on: what to watch for, its arms as buttons, and the paper's figures."""

from collections.abc import Callable, Mapping
from html import escape

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDockWidget, QHBoxLayout, QLabel, QPushButton, QScrollArea, QVBoxLayout, QWidget

from moeviz.domain.experiments import Experiment
from moeviz.domain.settings import Settings, Value
from moeviz.view.theme import GRID


class Guide(QDockWidget):
    """`change` is told the knobs of the arm that was chosen."""

    def __init__(self, change: Callable[[Mapping[str, Value]], object]) -> None:
        super().__init__("Experiment")
        self.setObjectName("dock_guide")
        self.experiment: Experiment | None = None
        self.arms: dict[str, QPushButton] = {}
        self._change = change
        self.words, self.figures = QLabel(), QLabel()
        self._buttons = QHBoxLayout()
        self._buttons.setSpacing(GRID // 2)
        body = QWidget()
        column = QVBoxLayout(body)
        column.setContentsMargins(GRID, GRID, GRID, GRID)
        column.addWidget(self.words)
        column.addLayout(self._buttons)
        column.addWidget(self.figures)
        column.addStretch(1)
        for label in (self.words, self.figures):
            label.setWordWrap(True)
            label.setTextFormat(Qt.TextFormat.RichText)
            label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        area = QScrollArea()
        area.setWidget(body)
        area.setWidgetResizable(True)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setMaximumWidth(400)  # as wide as the knobs above it
        self.setWidget(area)
        self.hide()

    def show_experiment(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.setWindowTitle(experiment.title)
        for button in self.arms.values():
            self._buttons.removeWidget(button)
            button.deleteLater()
        self.arms = {}
        for name in experiment.arms if len(experiment.arms) > 1 else ():
            button = QPushButton(name)
            button.setCheckable(True)
            button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
            button.setToolTip("Set the knobs of this arm on the running model; R begins it anew")
            button.clicked.connect(lambda _=False, name=name: self._choose(name))
            self._buttons.addWidget(button)
            self.arms[name] = button
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
        self.show()

    def show_settings(self, settings: Settings) -> None:
        """Which arm the running model is at, if any."""
        flat = settings.flat()
        for name, button in self.arms.items():
            assert self.experiment is not None
            button.setChecked(all(flat[key] == value for key, value in arm_values(self.experiment, name).items()))

    def _choose(self, name: str) -> None:
        assert self.experiment is not None
        self._change(arm_values(self.experiment, name))


def arm_values(experiment: Experiment, arm: str) -> dict[str, Value]:
    """The knobs that tell the arms of an experiment apart, as this one has them."""
    start = Settings().with_values(experiment.settings).flat()
    keys = dict.fromkeys(key for changes in experiment.arms.values() for key in changes)
    return {key: experiment.arms[arm].get(key, start[key]) for key in keys}
