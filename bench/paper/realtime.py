"""Study 6: real time. Prediction, certificate and repair against image size and threads.

    python bench/paper/realtime.py [--quick]

A shipped brain pair, resized; the network as `load_network` gives it, one pair at a time. The paper
registers in real time without folding: 25 pairs a second at 256 x 256 are asked for here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from images import brain_slices
from measuring import milliseconds
from pages import Study

from diffreg.fields import fold_certificate, make_diffeomorphic
from diffreg.fields.certificate import border
from diffreg.fields.polygon import crossing_edges
from diffreg.models import build_model
from diffreg.ops import jacobian_determinant
from diffreg.pretrained import load_pretrained

SIZES = (64, 128, 192, 256, 384, 512)
WANTED = 25.0  # pairs a second, at 256 x 256


def corners_of(field: torch.Tensor) -> torch.Tensor:
    """The determinants of the certificate, in double."""
    return jacobian_determinant(field.double())


def main() -> None:
    study = Study("realtime", __doc__.partition("\n")[0], needs_data=False)
    frames, _ = brain_slices()
    count = len(frames.images) // 2
    pair = [frames.images[k][None, None] for k in (10, count + 10)]
    trained = load_pretrained("lunet-cardiac-mr")["network"]
    networks = {"LU-net": trained, "SN": build_model("sn")}
    threads = [n for n in (1, 2) if n <= torch.get_num_threads()]
    rows, lines = [], []
    for size in SIZES[1::2] if study.quick else SIZES:
        moving, fixed = (F.interpolate(x, size=(size, size), mode="bilinear") for x in pair)
        for number in threads:
            torch.set_num_threads(number)
            row = {"size": size, "threads": number}
            for name, network in networks.items():
                network = network.eval().to(memory_format=torch.channels_last)

                def predicted(network=network, moving=moving, fixed=fixed):
                    with torch.inference_mode():
                        return network(moving, fixed)

                row[name] = milliseconds(predicted, 5 if study.quick else 25)
                if name == "LU-net":
                    field = predicted().clone()
                    row["certificate"] = milliseconds(lambda f=field: fold_certificate(f), 9)
                    row["determinants"] = milliseconds(lambda f=field: corners_of(f), 9)
                    row["border"] = milliseconds(lambda f=field: crossing_edges(*border(f[0])), 9)
                    repair = make_diffeomorphic(field)
                    row["repair"] = milliseconds(lambda f=field: make_diffeomorphic(f), 5)
                    row["folded_cells"] = repair.before.folded_cells
            rows.append(row)
            lines.append(
                [
                    f"{size} x {size}",
                    number,
                    f"{row['LU-net']:.1f}",
                    f"{1e3 / row['LU-net']:.0f}",
                    f"{row['SN']:.1f}",
                    f"{1e3 / row['SN']:.0f}",
                    f"{row['certificate']:.1f} ({row['determinants']:.1f}, {row['border']:.1f})",
                    f"{row['repair']:.1f} ({row['folded_cells']})",
                    f"{1e3 / (row['LU-net'] + row['repair']):.0f}",
                ]
            )
    titles = (
        "image",
        "threads",
        "LU-net, ms",
        "pairs a second",
        "SN, ms",
        "pairs a second",
        "certificate, ms (determinants, border)",
        "certificate and repair, ms (folded cells)",
        "LU-net guaranteed, pairs a second",
    )
    study.write_table("", titles, lines)
    study.write_json({"rows": rows, "wanted_pairs_a_second": WANTED})


if __name__ == "__main__":
    main()
