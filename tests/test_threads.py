"""Work that no thread takes any more."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastae.threads import submit


def test_a_shut_executor_leaves_the_work_to_the_caller():
    executor = ThreadPoolExecutor(1)
    assert submit(executor, divmod, 7, 2).result() == (3, 1)
    executor.shutdown()
    assert submit(executor, divmod, 7, 2).result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        submit(executor, divmod, 7, 0).result()


SCRIPT = """
import threading
import torch, fastae
torch.set_num_threads(2)

def corrupt():
    x = torch.rand(4000, 500)
    threading.main_thread().join()
    print((fastae.functional.corrupt(x, fastae.Masking(0.5)) == 0).float().mean().round(decimals=2).item())

threading.Thread(target=corrupt).start()
"""


def test_noise_is_drawn_in_a_thread_that_outlives_the_main_one():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert (result.stdout.strip(), result.returncode) == ("0.5", 0), result.stderr
