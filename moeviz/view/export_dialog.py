"""Asks how to export a picture: which file, how many pixels, which colours. What was chosen is there the next time."""

from pathlib import Path

from PySide6.QtCore import QSettings, QSize
from PySide6.QtGui import QIcon
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFileDialog,
    QGridLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QWidget,
)

from moeviz.view.export import DPI, pixels_of
from moeviz.view.memory import last_folder
from moeviz.view.theme import GRID

PICTURES = "Pictures (*.png *.svg *.pdf);;Numbers (*.csv)"
SCALES = {"1x, 96 dpi": 1.0, "2x, 192 dpi": 2.0, "3x, 288 dpi": 3.0, "print, 300 dpi": 300 / DPI, "4x, 384 dpi": 4.0}
WORDS = {  # what is written, by ending; of pixels there are so many
    ".png": "",
    ".svg": "Vectors with real text",
    ".pdf": "Vectors with real text",
    ".csv": "The numbers behind the picture",
}


class ExportDialog(QDialog):
    """`path`, `scale` (pixels of a PNG for each pixel of the window) and `light` once it was accepted."""

    def __init__(self, name: str, ending: str, size: QSize, memory: QSettings, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Export")
        self._memory, self._size = memory, size
        self._agreed = ""  # the file that may be replaced
        self.file = QLineEdit(str(last_folder(memory) / f"{name}.{ending}"))
        self.file.setMinimumWidth(360)
        self.file.textChanged.connect(self._renamed)
        choose = QPushButton("Choose…")
        choose.setAutoDefault(False)
        choose.clicked.connect(self._choose)
        self.pixels = QComboBox()
        self.pixels.addItems(list(SCALES))
        self.pixels.setCurrentText(str(memory.value("export/pixels", "2x, 192 dpi")))
        self.pixels.currentTextChanged.connect(self._explain)
        self.print_colours = QCheckBox("Light print colours")
        self.print_colours.setChecked(str(memory.value("export/light", "false")) == "true")
        self.hint = QLabel()
        self.hint.setObjectName("hint")
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Save | QDialogButtonBox.StandardButton.Cancel)
        self.save = self.buttons.button(QDialogButtonBox.StandardButton.Save)
        for button in self.buttons.buttons():
            button.setIcon(QIcon())
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        grid = QGridLayout(self)
        grid.setContentsMargins(2 * GRID, 2 * GRID, 2 * GRID, 2 * GRID)
        grid.setSpacing(GRID)
        for row, (title, field) in enumerate((("File", self.file), ("PNG size", self.pixels))):
            label = QLabel(title)
            label.setBuddy(field)
            grid.addWidget(label, row, 0)
            grid.addWidget(field, row, 1)
        grid.addWidget(choose, 0, 2)
        grid.addWidget(self.print_colours, 2, 1)
        grid.addWidget(self.hint, 3, 1, 1, 2)
        grid.addWidget(self.buttons, 4, 0, 1, 3)
        self._explain()

    @property
    def path(self) -> str:
        return self.file.text().strip()

    @property
    def scale(self) -> float:
        return SCALES[self.pixels.currentText()]

    @property
    def light(self) -> bool:
        return self.print_colours.isChecked()

    def accept(self) -> None:
        """Stays open while the file cannot be written as it is; the second Save replaces one that is there."""
        if not self._possible():
            self.file.setFocus()
            return
        if Path(self.path).is_file() and self._agreed != self.path:
            self._agreed = self.path
            self._explain()
            return
        self._memory.setValue("export/pixels", self.pixels.currentText())
        self._memory.setValue("export/light", "true" if self.light else "false")
        super().accept()

    def _choose(self) -> None:
        options = QFileDialog.Option.DontConfirmOverwrite  # Save asks
        if path := QFileDialog.getSaveFileName(self, "Export", self.path, PICTURES, options=options)[0]:
            self.file.setText(path)

    def _renamed(self) -> None:
        self._agreed = ""
        self._explain()

    def _possible(self) -> bool:
        return Path(self.path).suffix.lower() in WORDS and Path(self.path).absolute().parent.is_dir()

    def _explain(self) -> None:
        """What will be there after Save, or what is wrong."""
        path = Path(self.path)
        ending = path.suffix.lower()
        self.pixels.setEnabled(ending == ".png")
        self.print_colours.setEnabled(ending != ".csv")
        size = pixels_of(self._size, self.scale)
        there = path.is_file()
        replacing = there and self._agreed == self.path
        if ending not in WORDS:
            words = "The name must end in .png, .svg, .pdf or .csv"
        elif not path.absolute().parent.is_dir():
            words = f"There is no folder {path.parent}: choose another, or make it first"
        elif replacing:
            words = f"{path.name} is there already: Replace writes over it"
        else:
            words = WORDS[ending] or f"{size.width():,} x {size.height():,} pixels"
            words += "; the file is there already and would be replaced" if there else ""
        self.hint.setText(words + ".")
        self.save.setText("Replace" if replacing else "Save")
