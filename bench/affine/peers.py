"""The affine maps of greedy and ANTs of the same pairs, one thread each.

    python bench/affine/peers.py --data FOLDER

Needs picsl_greedy and antspyx, each call in a process of its own; goes on where it was stopped.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from split import PAIRS

RESULTS = Path(__file__).parents[1] / "results" / "affine_peers.json"
GREEDY = """
import sys
from picsl_greedy import Greedy3D
fixed, moving, out = sys.argv[1:]
Greedy3D().execute(f"-a -dof 12 -threads 1 -m {metric} -i {fixed} {moving} -o {out} "
                   "-n 100x50x10 -ia-image-centers")
"""
ANTS = """
import shutil, sys
import ants
import numpy as np
fixed, moving, out = sys.argv[1:]
images = ants.image_read(fixed), ants.image_read(moving)
found = ants.registration(*images, "Affine", random_seed=1)["fwdtransforms"][0]
transform = ants.read_transform(found)
numbers, centre = np.array(transform.parameters), np.array(transform.fixed_parameters)
world = np.eye(4)
world[:3, :3] = numbers[:9].reshape(3, 3)
world[:3, 3] = numbers[9:] + centre - world[:3, :3] @ centre
flip = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS to RAS
np.savetxt(out, flip @ world @ flip)
"""
METHODS = {
    "greedy NCC": GREEDY.replace("{metric}", "NCC 4x4x4"),
    "greedy NMI": GREEDY.replace("{metric}", "NMI"),
    "ANTs": ANTS,
}


def seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(program: str, fixed: Path, moving: Path) -> dict:
    """The map (4, 4), RAS mm from fixed to moving, and CPU seconds of the process."""
    threads = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out, begin = Path(folder) / "map.txt", seconds()
        command = [sys.executable, "-c", program, fixed, moving, out]
        subprocess.run(
            [str(part) for part in command],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | threads,
        )
        return {"matrix": np.loadtxt(out).tolist(), "cpu_s": seconds() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    folder = parser.parse_args().data / "volumes" / "brain2mm"
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for moving, fixed in PAIRS:
        for name, program in METHODS.items():
            pair = f"{moving} -> {fixed}"
            if name in done.setdefault(pair, {}):
                continue
            paths = (folder / f"{person}_t1.nii.gz" for person in (fixed, moving))
            done[pair][name] = measured(program, *paths)
            RESULTS.write_text(json.dumps(done, indent=1))
            print(pair, name, round(done[pair][name]["cpu_s"], 1), flush=True)


if __name__ == "__main__":
    main()
