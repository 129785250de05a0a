"""The tests in ``gpu_check.py`` that kernels have on a GPU."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.gpu_machine import ROOT, Machine, Save, call_for

_KERNELS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/kernels/test_*.py"))
_LATER = ("configurations", "addresses")
_NOT_THERE = ("aot", "stub", "tables", "cost", "config")  # which need no GPU
TESTS = {
    "kernels": [f for f in _KERNELS if not f[:-3].endswith(_LATER + _NOT_THERE)],
    "training": ["tests/train/test_graph.py", "tests/train/test_step.py"],
    "configurations": [f for f in _KERNELS if f[:-3].endswith(_LATER)],
}


def run_tests(which: str, here: Machine, save: Save) -> dict[str, Any]:
    """Counts of tests, and the names of those that fail."""
    workers = max(1, (os.cpu_count() or 1) * 3 // 4)  # most of the time is compiling kernels
    spread = ["-n", str(workers)] if importlib.util.find_spec("xdist") else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["-m", "not slow", *([] if here.dry else spread), *TESTS[which]]
        limit = max(5.0, here.left - 8.0)
        code, output = call_for(limit, command + (["--collect-only"] if here.dry else []))
        if here.dry:
            problems = {} if code == 0 else {"collection": output[-500:]}
            return {"collected": output.strip().splitlines()[-1:], "problems": problems}
        if not report.exists():
            return {"problems": {which: f"no report, exit code {code}"}, "output": output[-2000:]}
        suite = ElementTree.parse(report).getroot().find("testsuite")
        assert suite is not None
        counts = Counter({k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")})
        problems = {} if code is not None else {which: "not finished in time"}
        for case in suite.iter("testcase"):
            for failure in [*case.iter("failure"), *case.iter("error")]:
                name = f"{case.get('classname')}::{case.get('name')}"
                problems[name] = (failure.get("message") or "failed")[:300]
    return {**counts, "problems": problems}
