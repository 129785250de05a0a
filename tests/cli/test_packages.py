"""Without optional packages: what still works, and a hint for the rest."""

import shlex
import sys
from typing import Any

import fastae.__main__
from tests.cli.support import python


def test_the_library_needs_none_of_the_optional_packages():
    blocked = ["triton", "rich", "sklearn", "matplotlib", "tensorboard", "pooch", "scipy"]
    result = python(
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "import torch, fastae, fastae.train\n"
        "model = fastae.nn.Autoencoder(6, 4, contractive=0.1, corruption=fastae.Masking(0.2))\n"
        "model(torch.rand(5, 6)).total.backward(); print('fine')"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "fine\n", "")


def test_training_works_without_triton_and_tensorboard(here):
    result = python(
        "import sys; sys.modules.update(triton=None, tensorboard=None)\n"
        "from fastae.cli import main; sys.exit(main())",
        *shlex.split("train --sizes 64 8 --pretrain.epochs 1 --out run"),
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert (here / "run" / "log.csv").exists() and "Run: run" in result.stdout


def test_a_missing_package_is_a_hint_how_to_install_it(monkeypatch, capsys):
    class Missing:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name.split(".")[0] == "rich":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    ours = ("fastae.cli", "fastae.console")
    for name in [name for name in sys.modules if name in ours or name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(fastae, "cli")
    monkeypatch.delattr(fastae, "console")
    monkeypatch.setattr(sys, "meta_path", [Missing, *sys.meta_path])
    monkeypatch.setattr(sys, "argv", ["fastae", "info"])
    assert fastae.__main__.main() == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", 'fastae: rich is not installed: pip install "fastae[train]"\n')


def test_missing_scikit_learn_is_a_hint_how_to_install_it(fastae_, here, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    code, _, err = fastae_("train --pretrain.epochs 1")
    assert code in (1, 2) and 'pip install "fastae[train]"' in err and err.count("\n") == 1
