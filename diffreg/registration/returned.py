"""A registration as `diffreg.register` hands it out: it saves itself, and notebooks show it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, fields, replace
from html import escape
from pathlib import Path
from typing import Any

from diffreg.data.given import as_image
from diffreg.data.labels import doubted
from diffreg.registration.files import write_registration
from diffreg.registration.pair_page import view
from diffreg.registration.result import Registration
from diffreg.system.torch_modes import usual_modes


@dataclass(frozen=True, repr=False)
class Returned(Registration):
    """What came of registering one pair; see `Registration` for its parts."""

    @classmethod
    def of(cls, result: Registration) -> Returned:
        """The same result."""
        return cls(**{field.name: getattr(result, field.name) for field in fields(result)})

    @usual_modes()
    def save(
        self,
        folder: str | Path,
        report: bool = True,
        jacobian: bool = False,
        labels: tuple[Any, Any] | None = None,
        composites: bool = True,
    ) -> Returned:
        """Write warped image, transforms, metrics and report into a folder.

        Args:
            folder: it is made where it does not exist; its parent must.
            report: whether to write report.html, which needs matplotlib.
            jacobian: whether to write the maps of the determinant.
            labels: of the moving and the fixed image, as `register` takes images: the page outlines
                them, and metrics.json has their mean Dice.
            composites: whether to write composite.h5 and the way back.

        Returns:
            The result with the determinants of the file.

        Raises:
            ValueError: the folder cannot be written to.
        """
        images = None
        if labels is not None:
            names = zip(("moving labels", "fixed labels"), labels, strict=True)
            moving, fixed = (as_image(name, given, label=True) for name, given in names)
            images = doubted(moving), doubted(fixed)
        options: Any = {"jacobian": jacobian, "labels": images, "composites": composites}
        written = write_registration(self, folder, report, **options)
        return replace(self, metrics=written.metrics)

    @usual_modes()
    def _repr_html_(self) -> str:
        """Picture and verdict, as notebooks show them."""
        from diffreg.report.figures import pair_figure  # needs matplotlib

        picture = base64.b64encode(pair_figure(view(self, self.moving.name, {}))).decode()
        lines = [*self.how, self.verdict, *(f"warning: {warning}" for warning in self.warnings)]
        words = "".join(f"<p style='margin:.2em 0'>{escape(line)}</p>" for line in lines)
        image = f"<img alt='{escape(self.verdict)}' src='data:image/png;base64,{picture}'"
        return f"<div>{image} style='max-width:100%'>{words}</div>"
