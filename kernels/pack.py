"""Lay out ``fastae_kernels`` as a kernel package of the Hugging Face Hub: ``python kernels/pack.py FOLDER``.

FOLDER/build.toml and FOLDER/torch-ext are sources for kernel-builder, FOLDER/build is what they build to: the
kernels are Python alone, so that a copy per backend is the whole build. ``kernels.get_local_kernel(FOLDER)``
loads it, and ``kernels.get_kernel`` does after an upload.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
from pathlib import Path

NAME, VERSION, LICENSE = "fastae-kernels", 0, "Apache-2.0"
BACKENDS = ("cuda", "rocm")
BUILD = f"""[general]
name = {json.dumps(NAME)}
version = {VERSION}
edition = 6
license = {json.dumps(LICENSE)}
backends = {json.dumps(BACKENDS)}

[torch-noarch]
"""
_VARIANTS = {**{backend: backend for backend in BACKENDS}, "universal": "cpu"}
"""Backends by variant; the universal one is taken everywhere else, as for Triton's interpreter."""
_ROOT = Path(__file__).parents[1]
_LEFT_OUT = shutil.ignore_patterns("tools", "aot.py", "__pycache__")


def pack(folder: Path) -> None:
    """Write the package into a folder that is new or empty."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"folder: expected a new or an empty one, got {folder}")
    sources = folder / "torch-ext" / NAME.replace("-", "_")
    shutil.copytree(_ROOT / "kernels" / sources.name, sources, ignore=_LEFT_OUT)
    with (sources / "__init__.py").open("a", encoding="utf-8") as file:
        file.write('\nfrom . import operators\n\n__all__ = ["operators"]\n')
    (folder / "build.toml").write_text(BUILD, "utf-8")
    shutil.copy(_ROOT / "LICENSE", folder)
    digests = {
        path.relative_to(sources).as_posix(): hashlib.sha256(path.read_bytes()).digest()
        for path in sorted(sources.rglob("*"))
        if path.is_file()
    }
    whole = hashlib.sha256(b"".join(digests.values())).hexdigest()[:8]
    for variant, backend in _VARIANTS.items():
        built = folder / "build" / f"torch-{variant}"
        shutil.copytree(sources, built)
        metadata = {
            "id": f"_{sources.name}_{variant}_{whole}",  # several versions may be loaded in one process
            "name": NAME,
            "version": VERSION,
            "license": LICENSE,
            "python-depends": [],
            "backend": {"type": backend},
            "digest": {
                "algorithm": "sha256",
                "files": {path: base64.b64encode(digest).decode() for path, digest in digests.items()},
            },
        }
        (built / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Lay out the kernels as a package of the Hugging Face Hub.")
    parser.add_argument("folder", type=Path, help="a new folder")
    pack(parser.parse_args().folder)
