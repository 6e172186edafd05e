"""The text task: what is read, how it is split, and what a user is told of files that cannot be used."""

import os
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
from moeviz.moe.tasks.loading import load_task
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


def test_files_and_folders_of_a_folder_are_domains(tmp_path):
    for name in ("c.txt", "a.txt", "b/1.txt", "b/deep/2.txt", "a/3.txt", "short.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("short" if name == "short.txt" else name + LINES)
    (tmp_path / "nothing").mkdir()
    data = load_text(str(tmp_path))
    assert data.domains == ("a", "b", "a.txt", "c")
    assert len(data.train[1]) > 1.9 * len(data.train[3])
    short, nothing = sorted(data.notes, reverse=True)
    assert "short.txt is left out: 5 characters are too few" in short
    assert nothing.endswith("nothing is left out: it holds no file.")


def several(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name + LINES)
    return os.pathsep.join(str(folder / name) for name in names)


def test_several_files_and_folders_are_domains_in_their_order(tmp_path):
    several(tmp_path, "folder/1.txt", "folder/2.txt")
    path = several(tmp_path, "z.txt", "a.txt") + os.pathsep + str(tmp_path / "folder")
    told = []
    data = load_text(path, lambda done, total: told.append((done, total)))
    assert data.domains == ("z", "a", "folder")
    assert told == [(done, 4) for done in range(4)]
    texts = [data.decode(train) + data.decode(held) for train, held in zip(data.train, data.heldout, strict=True)]
    assert texts == ["z.txt" + LINES, "a.txt" + LINES, "folder/1.txt" + LINES + "folder/2.txt" + LINES]
    assert data.notes == ()


@pytest.mark.parametrize(
    ("names", "domains"),
    [
        (["a/notes.txt", "b/notes.txt", "c.txt"], ["a/notes.txt", "b/notes.txt", "c"]),
        (["x/a/notes.txt", "y/a/notes.txt"], ["x/a/notes.txt", "y/a/notes.txt"]),
        (["notes.md", "notes.txt"], ["notes.md", "notes.txt"]),
        (["a/n.txt.bak", "a/n.md", "a/n.txt", "b/n.txt"], ["a/n.txt.bak", "n.md", "a/n.txt", "b/n.txt"]),
    ],
)
def test_domains_of_one_name_are_told_apart(tmp_path, names, domains):
    data = load_text(several(tmp_path, *names))
    assert data.domains == tuple(domains)
    assert [data.decode(ids).partition("line")[0] for ids in data.train] == names


def test_what_is_named_twice_is_one_domain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = several(tmp_path, "a.txt", "b.txt")
    data = load_text(os.pathsep.join((path, "a.txt", "./b.txt")))
    assert data.domains == ("a", "b")
    assert data.notes == ()


def test_of_several_the_one_that_is_not_there_is_named(tmp_path):
    path = several(tmp_path, "a.txt", "b.txt")
    with pytest.raises(UserError, match=r"There is no file or folder .*/gone\.txt; check data\.path\."):
        load_text(os.pathsep.join((path, str(tmp_path / "gone.txt"))))


def test_of_several_what_cannot_be_used_is_told(tmp_path):
    path = several(tmp_path, "a.txt", "b.txt")
    (tmp_path / "a.txt").write_text("")
    data = load_text(path)
    assert data.domains == ("b",)
    assert data.notes == (f"{tmp_path / 'a.txt'} is empty, so it is left out.",)
    (tmp_path / "b.txt").write_bytes(b"\0" * 5000)
    with pytest.raises(
        UserError, match=r"^a\.txt and 1 other hold no text that can be used; give text files in UTF-8\."
    ):
        load_text(path)


def test_of_many_the_first_sixteen_are_used(tmp_path):
    path = several(tmp_path, "f/x.txt", *(f"{i:02}.txt" for i in range(19)))
    data = load_text(path)
    assert len(data.domains) == 16
    assert data.notes == ("Each of the 20 files that were named is a domain; only the first 16 are used.",)
    data = load_text(str(tmp_path))
    assert data.notes == (f"Each of the 20 files and folders in {tmp_path} is a domain; only the first 16 are used.",)


@pytest.mark.parametrize("task", ["plane", "recommendation"])
def test_the_other_tasks_take_one_path(tmp_path, task):
    with pytest.raises(UserError) as caught:
        load_task(task, several(tmp_path, "a.csv", "b.csv"))
    assert str(caught.value) == (
        f"The task {task} takes one file or folder, and data.path names several, a.csv and 1 other; name one of them."
    )


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
    for load in (load_text, lambda path: load_task("recommendation", path)):
        with pytest.raises(UserError, match="nobody_there"):
            load("~nobody_there/x")


def test_of_many_files_that_are_left_out_the_first_are_named(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"a{i:02}.txt").write_text(f"short {i}")
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "long.txt").write_text("a long text, of many words " * 100)
    found = own.documents(str(tmp_path))
    assert list(found.domains) == ["z"], "no file pushes a folder out"
    assert len(found.notes) == 5
    assert found.notes[0].startswith("Each of the 21 files and folders")
    assert "a00.txt is left out" in found.notes[1]
    assert found.notes[-1] == "The like is true of 12 more."
