"""The tasks by name, with one line on their data. Imports nothing, so that listing them costs nothing."""

TASKS: dict[str, str] = {
    "text": "next character of real text in four domains found on this computer: Python sources, English prose, "
    "mathematics (SymPy sessions) and data files; or of your own text (data.path)",
}
