"""Every notebook runs from a clean kernel, and is committed with its pictures."""

import json
import sys
from pathlib import Path

import pytest

from attention_vision import attention

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("sklearn")  # the photograph

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture
def this_interpreter(tmp_path, monkeypatch) -> str:
    """Name of a kernel that is the running interpreter, whatever kernels are installed."""
    kernel = tmp_path / "jupyter" / "kernels" / "this-interpreter"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "this interpreter", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    return kernel.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, this_interpreter, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name=this_interpreter, resources=resources
    )
    client.execute()  # a cell that raises fails the test with its traceback


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_shows_a_picture_per_section(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1.5e6
    pictures, section = {}, "opening"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = [line for line in cell.source.splitlines() if line.startswith("## ")]
            section = headings[-1] if headings else section
            continue
        assert cell.execution_count is not None, f"not executed: {cell.source[:60]}"
        shown = ["image/png" in output.get("data", {}) for output in cell.outputs]
        pictures[section] = pictures.get(section, 0) + sum(shown)
    assert all(pictures.values()), pictures


def test_every_mechanism_is_shown():
    notebook = nbformat.read(NOTEBOOKS[0].with_name("attention_mechanisms.ipynb"), as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    contracts = {"FeatureAttention", "TokenAttention", "capture"}
    missing = [name for name in attention.__all__ if name not in code and name not in contracts]
    assert not missing
