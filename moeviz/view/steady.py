"""A label whose text changes at every frame without anything being laid out anew."""

from PySide6.QtWidgets import QLabel

from moeviz.view.theme import ZEROS


class SteadyLabel(QLabel):
    """At least `least` px wide. If it `grows`, as wide as the widest text since it was empty, so that what stands after
    it does not jump with every number."""

    def __init__(self, least: int = 0, *, grows: bool = True) -> None:
        super().__init__()
        self._least, self._grows, self._widest = least, grows, 0
        self._measured = ""  # the text that was last, with zeros for figures

    def say(self, text: str) -> None:
        if text == self.text():
            return
        self.setText(text)
        measured = text.translate(ZEROS)  # figures are of one width
        if measured == self._measured:
            return
        self._measured = measured
        if not self._grows:
            self.setMinimumWidth(0)  # its hint is never below that
        wanted = self.sizeHint()
        self._widest = max(self._widest if self._grows else 0, wanted.width()) if text else 0
        # of one possible size only, it does not ask its parent's layout for room at each text
        self.setFixedSize(max(self._least, self._widest), wanted.height())
