"""The precision of float32 products: set while a run trains, recorded, kept by a resumed run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastae.tensors import _product_settings, float32_products_of
from fastae.train import TrainConfig, load_checkpoint, train


def settings() -> list[str]:
    return [setting.fp32_precision for setting in _product_settings()]


@pytest.fixture(params=["untouched", "high", "medium", "mixed"])
def before(request):
    """Settings of the process: as they are, one for all devices, or one for each."""
    with float32_products_of("highest" if request.param in ("untouched", "mixed") else request.param):
        if request.param == "mixed":
            _product_settings()[1].fp32_precision = "bf16"
        yield settings()


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_a_setting_holds_within_its_block_alone(before, precision):
    with pytest.raises(KeyboardInterrupt), float32_products_of(precision):
        assert torch.get_float32_matmul_precision() == precision
        raise KeyboardInterrupt
    assert settings() == before


def test_a_run_sets_records_and_restores_its_products(tiny, one_layer, updates, before):
    seen = set()
    progress = updates(lambda done: seen.add(torch.get_float32_matmul_precision()))
    result = train(one_layer(products="medium"), dataset=tiny, progress=progress)
    assert seen == {"medium"} and settings() == before
    assert result.config is not None and result.config.products == "medium"
    assert load_checkpoint(result.path).config["products"] == "medium"


@pytest.mark.parametrize("setting", ["highest", "medium"])
def test_a_run_without_the_option_records_the_setting_of_the_process(tiny, one_layer, setting):
    with float32_products_of(setting):
        result = train(one_layer(), dataset=tiny)
    assert load_checkpoint(result.path).config["products"] == setting


def test_a_resumed_run_keeps_its_products(tiny, make_config, interrupt, resume, assert_same_run):
    whole = train(make_config("whole", products="medium"), dataset=tiny)
    config = make_config("parts", products="medium")
    interrupt(config, 6)
    with pytest.warns(UserWarning, match="keeps its own products$"):
        assert_same_run(whole, resume(replace(config, products="high")))


def test_bfloat16_products_are_taken_where_the_processor_has_them(tiny, one_layer):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bfloat16 products on this processor")
    wide = {"sizes": (6, 256), "memory_gib": 1.0}
    exact, rounded = (train(one_layer(p, products=p, **wide), dataset=tiny) for p in ("highest", "medium"))
    one, other = (run.history[-1]["train_total"] for run in (exact, rounded))
    assert one != other and one == pytest.approx(other, rel=1e-2)


def test_a_precision_without_a_name_is_refused():
    with pytest.raises(ValueError, match="products: 'low' is not one of highest, high, medium"):
        TrainConfig(products="low")  # pyright: ignore[reportArgumentType]
