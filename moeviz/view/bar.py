"""The bar: train, layer, device, probe."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PySide6.QtGui import QAction
from PySide6.QtWidgets import QComboBox, QLabel, QLineEdit, QToolBar, QToolButton

from moeviz.view.theme import GRID

if TYPE_CHECKING:
    from moeviz.domain.routing import RoutingSnapshot
    from moeviz.view.window import Window


class Bar(QToolBar):
    def __init__(self, window: "Window", device: str) -> None:
        super().__init__("Bar")
        self.setObjectName("bar")
        self.setMovable(False)
        self.layer_box = QComboBox()
        self.layer_box.setToolTip("The MoE layer that the token panels show (Up and Down arrow keys)")
        self.layer_box.setMinimumWidth(96)
        self.layer_box.activated.connect(window.select_layer)
        self.device_box = QComboBox()
        self.device_box.addItems(list(dict.fromkeys((device, "cpu"))))  # also where that device is not there
        self.device_box.setToolTip("Where the model runs; a running model moves along")
        self.device_box.activated.connect(lambda: window.move_model())
        self.probe_line = QLineEdit()
        self.probe_line.setToolTip("The text that the token panels show; edit it and press Enter, also while training")
        self.probe_line.setAccessibleName("Probe text")
        self.probe_line.returnPressed.connect(lambda: window.set_probe(self.probe_line.text().replace("↵", "\n")))
        self.probe_line.returnPressed.connect(window.setFocus)  # Space trains again

    def fill(self, actions: Sequence[QAction]) -> None:
        """The commands of the run, then the choices."""
        for i, action in enumerate(actions):
            button = QToolButton()
            button.setDefaultAction(action)
            if i == 0:
                button.setMinimumWidth(8 * GRID)  # the bar must not move when Train becomes Pause
            self.addWidget(button)
        for title, box in (("Layer ", self.layer_box), ("Device ", self.device_box), ("Probe ", self.probe_line)):
            self.addSeparator()
            self.addWidget(QLabel(title))
            self.addWidget(box)

    @property
    def device(self) -> str:
        """Where the model runs, or where the next one will."""
        return self.device_box.currentText()

    def show_devices(self, devices: Sequence[str]) -> None:
        now = self.device
        self.device_box.clear()
        self.device_box.addItems(list(dict.fromkeys((*devices, now))))
        self.device_box.setCurrentText(now)

    def show_snapshot(self, snapshot: "RoutingSnapshot", layer: int) -> None:
        """The layers to choose from, and the text."""
        names = [routing.name for routing in snapshot.layers]
        if [self.layer_box.itemText(i) for i in range(self.layer_box.count())] != names:
            self.layer_box.clear()
            self.layer_box.addItems(names)
        self.layer_box.setCurrentIndex(min(layer, len(names) - 1))
        text = "".join(snapshot.tokens or ()).replace("\n", "↵")
        if not self.probe_line.hasFocus() and self.probe_line.text() != text:
            self.probe_line.setText(text)
            self.probe_line.setCursorPosition(0)
