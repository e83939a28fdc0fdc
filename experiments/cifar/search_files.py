"""What the search leaves in the run folder: after each round, and at its end.

search/round-3.safetensors    the mask after a round
search/round-3.json   the rows up to it, sealed (see `files.seal`); written after the mask
mask.safetensors, search.json, mask.sha256    the same at the end of the search, in this order
search.csv            the rows, to be read by people and by the report; never by a resumed run
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.shell.errors import UserError
from experiments.storage import files, run_folder
from experiments.storage.run_folder import Row
from ntksap_jax import masks
from ntksap_jax.types import Mask, Params, RoundInfo

KEEP = 2
"""Rounds, so that there is one to go on from if the last one is damaged."""

LAYER = "density of "
"""What the columns of search.csv with the density of a layer start with."""


def round_row(info: RoundInfo, mask: Mask) -> Row:
    """Returns one round of the search as a row of search.csv."""
    return {
        "round": info.round,
        "density": info.density,
        "num_kept": info.num_kept,
        "threshold": info.threshold,
        **info.metrics,
        "seconds": round(info.seconds, 3),
        "sha256": masks.digest(mask),
        **{LAYER + path: density for path, density in info.layer_densities.items()},
    }


# -- Rounds --------------------------------------------------------------------------------------


def save_round(folder: Path, rows: Sequence[Row], mask: Mask) -> None:
    """Records the mask and the rows so far, after a round of the search."""
    number, rounds = rows[-1]["round"], folder / "search"
    rounds.mkdir(exist_ok=True)
    masks.save(rounds / f"round-{number}.safetensors", mask)
    record = files.seal({"run": run_folder.identity(folder), "rows": list(rows)})
    run_folder.write_json(rounds / f"round-{number}.json", record)
    run_folder.write_table(folder / "search.csv", rows)
    for path in rounds.glob(f"round-{number - KEEP}.*"):
        path.unlink()


def load_round(
    folder: Path, like: Params, *, say: Callable[[str], None]
) -> tuple[list[Row], Mask | None]:
    """Returns the rows and the mask of the last round that is intact; before the first, none.

    The mask is for params as in `like`; `say` is told which rounds are lost, if any.

    Raises:
        UserError: there were rounds, and none is intact.
    """
    rounds, lost = folder / "search", []
    names = [path.stem.removeprefix("round-") for path in rounds.glob("round-*.json")]
    for number in sorted((int(name) for name in names if name.isdecimal()), reverse=True):
        try:
            rows, mask = _read_round(folder, number, like)
        except (OSError, ValueError) as error:
            lost.append(f"round {number}: {' '.join(str(error).split())}")
            continue
        if lost:
            say(f"the search goes on from round {number}; damaged: {'; '.join(lost)}")
        return rows, mask
    if lost or (folder / "search.csv").exists():
        raise UserError(
            f"no round of the search in {rounds} can be read "
            f"({'; '.join(lost) or 'there is none, but search.csv'}). Restore {rounds}, or delete "
            f"{folder} to search and train again"
        )
    return [], None


def _read_round(folder: Path, number: int, like: Params) -> tuple[list[Row], Mask]:
    record = files.read_sealed(folder / "search" / f"round-{number}.json")
    if record["run"] != run_folder.identity(folder):
        raise ValueError("it is of another run")
    path = _mask_path(folder / "search", f"round-{number}")
    return record["rows"], _read_mask(path, like, record["rows"][-1]["sha256"])


# -- The end of the search -----------------------------------------------------------------------


def save_mask(folder: Path, rows: Sequence[Row], mask: Mask) -> None:
    """Writes the mask that the search found, and the rows of all its rounds."""
    masks.save(folder / "mask.safetensors", mask)
    run_folder.write_json(folder / "search.json", files.seal(list(rows)))
    if rows:
        # Again, for the case that all was done but this: what people read follows what is verified.
        run_folder.write_table(folder / "search.csv", rows)
    files.write_text(folder / "mask.sha256", masks.digest(mask) + "\n")


def load_mask(folder: Path, like: Params) -> tuple[list[Row], Mask] | None:
    """Returns the rows and the mask of a search, or nothing if it is not complete.

    Raises:
        UserError: a file of these is damaged.
    """
    if not (folder / "mask.sha256").exists():
        return None
    path = _mask_path(folder, "mask")
    advice = f"Restore it, or delete {folder} and run again"
    with files.reading(f"the mask {path}", advice):
        mask = _read_mask(path, like, files.read_text(folder / "mask.sha256").strip())
    return files.read_sealed(folder / "search.json", advice=advice), mask


def drop_rounds(folder: Path) -> None:
    """Removes what only an incomplete run needs."""
    shutil.rmtree(folder / "search", ignore_errors=True)


# -- Files ---------------------------------------------------------------------------------------


def _mask_path(folder: Path, name: str) -> Path:
    """The file of a mask; version 0.1 wrote `.npz` files."""
    path, old = folder / f"{name}.safetensors", folder / f"{name}.npz"
    return old if old.exists() and not path.exists() else path


def _read_mask(path: Path, like: Params, digest: str) -> Mask:
    mask = masks.load(path, like=like)
    if masks.digest(mask) != digest:
        raise ValueError(f"{path.name} is not the mask whose SHA-256 was recorded")
    return mask
