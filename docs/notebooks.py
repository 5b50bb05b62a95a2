"""Runs the notebooks from the first cell to the last, and keeps what they print and draw in them.

    python docs/notebooks.py [NAME ...]

Each runs in an empty folder. Three minutes on one core; needs what the notebooks' first cells name.
"""

from __future__ import annotations

import base64
import io
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from diffreg.system.atomic import replacing

FOLDER = Path(__file__).parent / "notebooks"


def smaller(png: re.Match[str]) -> str:
    """As wide as a page. Fewer colours would show, as bands, and as others in the mesh."""
    image = Image.open(io.BytesIO(base64.b64decode(png[0]))).convert("RGB")
    image.thumbnail((1200, 1200))
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(
            notebook, kernel_name="python3", resources=resources, coalesce_streams=True
        ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        for output in cell.get("outputs", ()):
            if "text" in output:
                output.text = output.text.replace(f"{folder}/", "")
            data = output.get("data", {})
            if "text/html" in data:
                html = data["text/html"]
                data["text/html"] = re.sub(r"(?<=data:image/png;base64,)[\w+/=]+", smaller, html)
    notebook.metadata.language_info = {"name": "python"}
    with replacing(path) as part:
        nbformat.write(notebook, part)


def main() -> None:
    paths = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
    if unknown := set(sys.argv[1:]) - set(paths):
        sys.exit(f"notebooks: there is no {', '.join(unknown)}; there are {', '.join(paths)}")
    for name in sys.argv[1:] or paths:
        run(paths[name])
        print(name)


if __name__ == "__main__":
    main()
