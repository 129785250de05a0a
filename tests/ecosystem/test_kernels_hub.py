"""The kernels as a package of the Hugging Face Hub, loaded by path in a process without fastae."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
LOAD = """
import importlib.util, sys
from pathlib import Path
import torch

folder = Path(sys.argv[1])
if importlib.util.find_spec("kernels") and sys.argv[2] == "kernels":
    import kernels
    from kernels._rust import Digest, Metadata

    package = kernels.get_local_kernel(folder)
    for variant in (folder / "build").iterdir():
        digest = Metadata.read_from_file(variant / "metadata.json").digest
        digest.validate(Digest.hash_variant(digest.algorithm, variant))
else:
    place = folder / "build" / "torch-universal" / "__init__.py"
    spec = importlib.util.spec_from_file_location("elsewhere", place)
    package = sys.modules["elsewhere"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
generator = torch.Generator().manual_seed(0)
code, weight, bias, x = (torch.rand(shape, generator=generator) for shape in [(5, 7), (9, 7), (9,), (5, 9)])
loss, grad, _ = package.operators.decode_loss(code, weight, bias, x, "mse")
error = torch.nn.functional.linear(code, weight, bias) - x
torch.testing.assert_close(loss, error.square().sum(1))
torch.testing.assert_close(grad, 2.0 * error)
assert not {"fastae", "fastae_kernels"} & sys.modules.keys()
"""


@pytest.mark.parametrize("loader", ["kernels", "path"])
def test_the_package_is_loaded_by_path_and_computes(tmp_path, loader):
    if loader == "kernels":
        pytest.importorskip("kernels._rust")
    folder, script = tmp_path / "package", tmp_path / "load.py"
    script.write_text(LOAD)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"TRITON_INTERPRET": "1"}
    for command in ([str(ROOT / "kernels" / "pack.py"), str(folder)], [str(script), str(folder), loader]):
        run = subprocess.run(
            [sys.executable, *command],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
    assert (folder / "torch-ext" / "fastae_kernels" / "operators" / "__init__.py").is_file()
