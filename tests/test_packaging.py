"""What holds for the package as a whole."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_the_window_leaves_torch_out() -> None:
    code = (
        "import sys, moeviz.app; print([m for m in ('torch', 'zarr', 'transformers', 'pyqtgraph') if m in sys.modules])"
    )
    assert _run(code) == "[]"


def test_importing_moeviz_brings_neither_torch_nor_qt() -> None:
    assert _run("import sys, moeviz; print([m for m in ('torch', 'PySide6', 'numpy') if m in sys.modules])") == "[]"


@pytest.mark.slow
def test_a_built_wheel_carries_the_models_and_runs_from_any_folder(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True
    )
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {
        "moeviz/models/text.safetensors",
        "moeviz/models/text.md",
        "moeviz/py.typed",
        "moeviz/view/panel.py",
    } <= names
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import moeviz"
    code += "; from moeviz.app import bundled_model; print(bundled_model('text')); print(moeviz.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.count(str(tmp_path / "site")) == 2
