"""Epilogues on warps of their own, which no interpreter runs: by their PTX, beside the interpreter's."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastae_kernels.operators import run
from fastae_kernels.plan.schedules import Plan

from tests.kernels import epilogues
from tests.kernels.support import ON_GPU


@pytest.mark.slow
@pytest.mark.skipif(ON_GPU, reason="needs the interpreter")
def test_an_epilogue_on_its_own_warps_is_that_of_a_pass(tmp_path: Path):
    seed = torch.tensor([987_654_321])
    kept: dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    for name, call in epilogues.calls(epilogues.some, seed).items():

        def by_a_pass(epilogue: Any, args: Any, plan: Plan, out: torch.Tensor, name: str = name) -> None:
            first = epilogues.tensors_of(args)
            run.elementwise_pass(epilogues.product(), out, epilogue, args, plan)
            kept[name] = first, epilogues.tensors_of(args)

        with epilogues.handled(by_a_pass):
            call()
    file = tmp_path / "calls.pkl"
    file.write_bytes(pickle.dumps(kept))
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {
        "FASTAE_BACKEND": "triton",
        "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path),
    }
    program = [sys.executable, str(Path(epilogues.__file__)), str(file)]
    done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    errors = json.loads(done.stdout)
    assert errors.keys() == kept.keys()
    for name, found in errors.items():
        assert len(found) >= 2 and max(found.values()) < 1e-5, (name, found)
