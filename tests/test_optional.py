"""Optional packages: a missing one names the extra that installs it."""

import subprocess
import sys

import pytest

from fastae.errors import DataError, MissingPackageError
from fastae.optional import require


def test_an_installed_module_is_returned():
    assert require("json.decoder", "x") is sys.modules["json.decoder"]


def test_a_missing_package_names_its_extra():
    message = r'^scores: no_such is not installed: pip install "fastae\[deep\]"$'
    with pytest.raises(MissingPackageError, match=message) as caught:
        require("no_such.part", "scores", "deep")
    assert isinstance(caught.value, ImportError) and isinstance(caught.value, DataError)
    assert caught.value.name == "no_such"


def test_pictures_without_matplotlib_name_its_extra():
    code = "import sys; sys.modules['matplotlib'] = None; import fastae.plots"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert 'fastae.plots: matplotlib is not installed: pip install "fastae[train]"' in result.stderr
