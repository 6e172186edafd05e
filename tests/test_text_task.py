"""The text task: what is read, how it is split, and what a user is told of files that cannot be used."""

import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from moeviz.app import make_session
from moeviz.domain.messages import UserError
from moeviz.domain.settings import Settings
from moeviz.engine.mailbox import Mailbox
from moeviz.engine.runner import Runner
from moeviz.moe.tasks import builtin, own
from moeviz.moe.tasks.text import VOCABULARY, TextData, load_text

LINES = "".join(f"line {i} of a text that is long enough\n" for i in range(200))


@pytest.fixture(scope="module")
def data() -> TextData:
    return load_text()


def test_builtin_has_four_domains_and_the_fixed_vocabulary(data):
    assert data.domains == ("python", "prose", "math", "data")
    assert data.vocabulary == VOCABULARY
    assert len(VOCABULARY) == 98
    for train, heldout in zip(data.train, data.heldout, strict=True):
        assert 500_000 < len(train) < builtin.DOMAIN_CHARS
        assert 0.09 < len(heldout) / (len(train) + len(heldout)) < 0.2
        assert (train == 0).mean() < 0.01  # nearly everything is in the vocabulary
    assert data.decode(data.encode(data.probe)) == data.probe


def test_data_files_are_of_every_kind_that_the_dependencies_bring(data):
    """TOML is not among them: no dependency has a file of it."""
    structured = data.decode(data.train[3]) + data.decode(data.heldout[3])
    for kind, sign in {
        "JSON": '"outputRevision":',
        "XML": "<typesystem",
        "CSV": "\n0.2",
        "YAML": "\n- func: ",
        "INI": "\n[console_scripts]\n",
    }.items():
        assert sign in structured, kind


def test_builtin_is_the_same_every_time(data):
    again = load_text()
    assert all(
        np.array_equal(a, b) for a, b in zip(data.train + data.heldout, again.train + again.heldout, strict=True)
    )


def test_no_document_is_in_both_parts(data):
    train = [data.decode(ids) for ids in data.train]
    for ids in data.heldout:
        heldout = data.decode(ids)
        # windows of 400 characters, from all over the held-out part; licences share shorter sentences
        windows = [heldout[i : i + 400] for i in range(0, len(heldout) - 400, 2_000)]
        shared = sum(any(window in text for text in train) for window in windows)
        assert shared <= 0.02 * len(windows)


def test_own_documents_are_distinct_and_split_whole(tmp_path):
    for i in range(20):
        folder = tmp_path / "texts" / "letters"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02}.txt").write_text(f"<{i}>" + "x" * 500 + f"</{i}>\n")
    (folder / "copy.txt").write_text((folder / "00.txt").read_text())
    data = load_text(str(tmp_path / "texts"))
    train, heldout = data.decode(data.train[0]), data.decode(data.heldout[0])
    assert data.domains == ("letters",)
    assert heldout.startswith("<")
    assert train.endswith("\n")
    assert train.count("<0>") + heldout.count("<0>") == 1
    assert "copy" in data.notes[0]


def test_one_file_is_split_by_position(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(LINES)
    data = load_text(str(path))
    assert data.domains == ("a",)
    assert data.decode(data.train[0]) + data.decode(data.heldout[0]) == LINES
    assert data.probe in LINES


def test_files_of_a_folder_are_domains(tmp_path):
    (tmp_path / "a.txt").write_text(LINES)
    (tmp_path / "b.txt").write_text("b" + LINES)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0\0" * 1000)
    (tmp_path / "short.txt").write_text("too short")
    data = load_text(str(tmp_path))
    assert data.domains == ("a", "b")
    notes = " ".join(data.notes)
    assert "is empty" in notes
    assert "not a text file" in notes
    assert "too few" in notes


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_and_other_characters(tmp_path, encoding):
    text = "专家混合模型 routes tokens.\n" * 200
    (tmp_path / "a.txt").write_text(text, encoding=encoding)
    data = load_text(str(tmp_path / "a.txt"))
    assert data.decode(data.train[0]) + data.decode(data.heldout[0]) == text
    assert data.vocabulary.startswith(VOCABULARY)
    assert data.decode(data.encode("Ω")) == "\ufffd"


def test_at_most_158_other_characters(tmp_path):
    (tmp_path / "a.txt").write_text("".join(map(chr, range(0x4E00, 0x4E00 + 3000))), encoding="utf-8")
    assert len(load_text(str(tmp_path / "a.txt")).vocabulary) == 256


def test_with_vocabulary(data):
    other = data.with_vocabulary("\ufffdabc")
    assert other.decode(other.encode("cab!")) == "cab\ufffd"
    assert len(other.train[0]) == len(data.train[0])
    kept = data.with_vocabulary(VOCABULARY + "é")
    assert np.array_equal(kept.train[1], data.train[1])


def test_how_far_reading_a_folder_is_gets_told_and_it_can_be_cancelled(tmp_path):
    for i in range(6):
        (tmp_path / f"{'ab'[i % 2]}").mkdir(exist_ok=True)
        (tmp_path / f"{'ab'[i % 2]}" / f"{i}.txt").write_text(f"{i}" + LINES)
    told = []
    load_text(str(tmp_path), lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(6)]

    def cancel(done: int, total: int) -> None:
        if done == 3:
            raise UserError("Reading texts: cancelled.")

    with pytest.raises(UserError, match="cancelled"):
        load_text(str(tmp_path), cancel)


def test_closing_does_not_wait_until_the_built_in_text_is_read(monkeypatch):
    begun, over = threading.Event(), threading.Event()

    def endless(files):
        begun.set()
        while not over.is_set():
            yield "too short to be taken"

    monkeypatch.setattr(builtin, "_texts", endless)
    runner = Runner(Mailbox())
    runner.start(make_session(Settings(), "cpu", None))
    assert begun.wait(20)
    try:
        assert runner.close(10)
    finally:
        over.set()
        assert runner.close(20)


def test_reading_the_built_in_text_looks_at_nothing_that_is_installed_beside_python(monkeypatch):
    looked, glob = [], Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: looked.append(self) or glob(self, pattern))
    assert len(builtin._standard_library("**/*.py")) > 100
    root = Path(sysconfig.get_path("stdlib"))
    assert {path.parent for path in looked} == {root}
    assert not {path.name for path in looked} & builtin.LEFT_OUT


def test_huge_files_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "MAX_BYTES", 3_001)
    (tmp_path / "a.txt").write_text("ä" * 4_000, encoding="utf-8")
    with pytest.raises(UserError, match="1500 characters"):
        load_text(str(tmp_path / "a.txt"))
    monkeypatch.setattr(own, "MAX_BYTES", 5_001)
    data = load_text(str(tmp_path / "a.txt"))
    assert len(data.train[0]) + len(data.heldout[0]) == 2_500
    assert "Only the first" in data.notes[0]


def bad_paths(folder: Path) -> dict[str, Path]:
    (folder / "short.txt").write_text("short")
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes("é".encode("latin-1") * 5000)
    (folder / "binary").write_bytes(bytes(range(256)) * 100)
    (folder / "nothing").mkdir()
    return {
        "short.txt": folder / "short.txt",
        "is empty": folder / "empty.txt",
        "not valid UTF-8": folder / "latin.txt",
        "not a text file": folder / "binary",
        "no text": folder / "nothing",
        "There is no file": folder / "missing",
        "neither": Path("/dev/null"),
    }


@pytest.mark.skipif(sys.platform == "win32", reason="/dev/null")
def test_bad_input_gets_one_sentence(tmp_path):
    for words, path in bad_paths(tmp_path).items():
        with pytest.raises(UserError, match=words) as caught:
            load_text(str(path))
        assert str(caught.value).endswith(".")
        assert "\n" not in str(caught.value)


def test_light_and_fast():
    """Seen without their package, listing the tasks imports no numpy, and loading the text no torch and no sympy."""
    code = (
        "import sys, types, moeviz\n"
        "package = sys.modules['moeviz.moe'] = types.ModuleType('moeviz.moe')\n"
        "package.__path__ = [moeviz.__path__[0] + '/moe']\n"
        "import moeviz.moe.tasks\nassert not {'numpy', 'torch'} & set(sys.modules)\n"
        "from moeviz.moe.tasks.text import load_text\nload_text().parts\n"
        "assert not {'torch', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    start = time.perf_counter()
    load_text().parts  # noqa: B018 - this reads it
    assert time.perf_counter() - start < 5  # about 0.5 s here; a limit that a busy machine keeps too


def test_a_home_that_is_not_there_is_told_in_one_sentence() -> None:
    from moeviz.moe.tasks.loading import load_task

    for load in (load_text, lambda path: load_task("recommendation", path)):
        with pytest.raises(UserError, match="nobody_there"):
            load("~nobody_there/x")
