"""Forecasts as dated files, written before their target is run and never changed after.

A forecast that can be edited once the result is known is no forecast: a file is written once, with fingerprints of the
cells and of the code that it came from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dcr_ray
from dcr_ray.errors import InputError, Problem
from dcr_ray.fingerprint import digest, file_digest
from dcr_ray.scaling.cells import Cell
from dcr_ray.scaling.law import Law, Prediction, predict


@dataclass(frozen=True)
class Forecast:
    """What was foretold of one model and data size, by which law, from which cells and code, and when (UTC)."""

    study: str
    model: str
    family: str
    parameters: int
    data_size: int
    law: Law
    predictions: tuple[Prediction, ...]
    cells: str
    code: str
    written: str

    @property
    def name(self) -> str:
        """Of its file: study, metric, arm, model and data size."""
        return f"{self.study}-{self.law.metric}-{self.law.arm}-{self.model}-{self.data_size}".replace("/", "_")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Forecast:
        predictions = tuple(Prediction(**each) for each in plain["predictions"])
        return cls(**plain | {"law": Law.from_dict(plain["law"]), "predictions": predictions})


def make_forecast(
    study: str, law: Law, cells: Sequence[Cell], *, model: str, family: str, parameters: int, data_size: int
) -> Forecast:
    """A forecast with intervals of 80 and 95 %. Raises InputError for a model that is among the cells already, and as
    `predict` does."""
    if any(cell.model == model and cell.data_size == data_size for cell in cells):
        found = f"{model} at {data_size}, which has been run"
        raise InputError(
            [Problem("forecast", found, "a size that has not", "`backtest` asks what the others foretell.")]
        )
    predictions = tuple(predict(law, family, parameters, data_size, level) for level in (0.8, 0.95))
    written = datetime.now(UTC).isoformat(timespec="seconds")
    return Forecast(
        study, model, family, parameters, data_size, law, predictions, cells_digest(cells), code_digest(), written
    )


def write_forecast(forecast: Forecast, folder: Path | str) -> Path:
    """Write it to `folder`. Raises InputError where a forecast of this name is there already, whatever it says."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{forecast.name}.json"
    try:
        with open(path, "x") as file:
            json.dump(forecast.as_dict(), file, indent=1)
    except FileExistsError as error:
        fix = "Forecasts are not overwritten. For another one give the study another name."
        raise InputError([Problem("forecast", f"{path}, written before", "a forecast of its own name", fix)]) from error
    return path


def read_forecasts(folder: Path | str) -> list[Forecast]:
    """All forecasts in a folder, the oldest first."""
    found = [Forecast.from_dict(json.loads(file.read_text())) for file in Path(folder).glob("*.json")]
    return sorted(found, key=lambda forecast: (forecast.written, forecast.name))


def cells_digest(cells: Sequence[Cell]) -> str:
    """SHA-256 over the cells, whatever their order."""
    return digest(sorted((cell.as_dict() for cell in cells), key=lambda plain: digest(plain)))


def code_digest() -> str:
    """SHA-256 over the files of this package's scaling code, and its version."""
    files = sorted((Path(dcr_ray.__file__).parent / "scaling").glob("*.py"))
    return digest({"version": dcr_ray.__version__} | {file.name: file_digest(file) for file in files})
