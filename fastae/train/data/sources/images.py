"""Folders of images, one folder per class, by Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ....errors import DataError
from ....optional import require
from ..parts import RawData, RawPart, check_part
from ..tables import Columns
from .files import check_size, reading

_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"])
_EXACT_MODES = frozenset({"L", "F", "I", "I;16", "I;16B", "I;16L"})


def is_image_folder(folder: Path) -> bool:
    """True if there are images in a folder, its folders, or theirs (of train and test)."""
    return any(_is_image(file) for depth in ("*", "*/*", "*/*/*") for file in folder.glob(depth))


def read_image_folder(folder: Path, name: str, columns: Columns) -> RawData:
    """Read images of one size, uint8 [N, H, W] or [N, H, W, 3].

    The folders named train and test, where there are both, are the parts. In a part, folders are classes.
    """
    parts = {child.name.lower(): child for child in folder.iterdir() if child.is_dir()}
    if {"train", "test"} <= parts.keys():
        train = _read_part(parts["train"], name, columns)
        return RawData(train, _read_part(parts["test"], f"{name}: test", columns))
    return RawData(_read_part(folder, name, columns))


def _read_part(folder: Path, name: str, columns: Columns) -> RawPart:
    image_module = require("PIL.Image", name, "data")
    classes = [child for child in sorted(folder.iterdir()) if child.is_dir()]
    files = [(file, child.name) for child in classes for file in sorted(child.iterdir()) if _is_image(file)]
    labels = [label for _, label in files]
    if not files:
        files, labels = [(file, "") for file in sorted(folder.iterdir()) if _is_image(file)], None
    if not files:
        raise DataError(f"{name}: no images")
    images: np.ndarray | None = None
    for number, (file, _) in enumerate(files):
        with reading(file), image_module.open(file) as image:
            width, height = image.size
            check_size(file, 4 * width * height, "the image")
            pixels = _pixels(image)
        if images is None:
            images = np.empty((len(files), *pixels.shape), pixels.dtype)
        if pixels.shape != images.shape[1:] or pixels.dtype != images.dtype:
            this, first = (path.relative_to(folder) for path in (file, files[0][0]))
            raise DataError(
                f"{name}: {this} is {_form(pixels)}, where {first} is {_form(images[0])};"
                " all images must be alike"
            )
        images[number] = pixels
    return check_part(name, images, labels, label_source="" if labels is None else "folders")


def _pixels(image: Any) -> np.ndarray:
    """Grey values as they are stored; colours, with or without a palette, as RGB."""
    if image.mode in _EXACT_MODES:
        return np.asarray(image)
    return np.asarray(image.convert("L" if image.mode in ("1", "LA") else "RGB"))


def _form(pixels: np.ndarray) -> str:
    return f"{' x '.join(map(str, pixels.shape))} {pixels.dtype}"


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and file.is_file()
