"""Reductions in TTGIR over lanes that are not neighbours.

A layout gives the step along each axis of a tensor that each bit of a lane's number makes; along an axis
without a step, the lanes hold copies. Triton 3.6 reduces an axis over consecutive bits: the first with a step
along it, and as many after it as have one. If bits without a step lie between them, it combines the wrong
lanes, without an error. Triton 3.9 takes the right bits; since its layouts are mostly those of 3.6, such a
reduction is to be avoided with every version.

Scans have no such case: Triton converts their operands to blocked layouts, where these bits are consecutive.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

_CONSECUTIVE = {"blocked", "nvidia_mma", "amd_mfma", "amd_wmma", "dot_op"}
"""Layouts in which the bits of an axis are consecutive by construction, as they are in slices of them."""

_REDUCE = re.compile(
    r"[^\n]*\baxis = (?P<axis>\d+)\b.*?\n"  # operands and attributes, then what combines two entries
    r"\s*\}\) : \(tensor<(?P<shape>[\dx]+)x[^,]*, (?P<layout>[^\n]*?)>(, tensor<[^\n]*)?\)"
    r" -> [^\n]*?( loc\((?P<location>[^\n]*)\))?\n",
    re.DOTALL,
)


def _expand(text: str, aliases: dict[str, str]) -> str:
    """``text`` with the definitions of names in their place: a layout and its parents, or a location."""
    return re.sub(
        r"#\w+(?![\w.])",
        lambda name: _expand(aliases[name[0]], aliases) if name[0] in aliases else name[0],
        text,
    )


def _lane_bits(layout: str, axis: int, size: int) -> list[int] | None:
    """Bits of a lane's number with a step along an axis; ``None`` if the layout is not known to be right."""
    kind = next((kind for kind in re.findall(r"#\w+\.(\w+)<", layout) if kind != "slice"), "")
    if kind in _CONSECUTIVE:
        return []
    lanes = re.search(r"\blane = (\[.*?\]), warp", layout)
    if kind != "linear" or lanes is None:
        return None
    bases: list[list[int]] = json.loads(lanes[1])
    for dim in map(int, reversed(re.findall(r"slice<\{dim = (\d+)", layout))):  # the innermost slice first
        bases = [basis[:dim] + basis[dim + 1 :] for basis in bases]
    return [bit for bit, basis in enumerate(bases) if 0 < basis[axis] < size]  # steps beyond make copies


def _source_line(location: str) -> str:
    """``folder/file.py:line`` of the innermost call that is not in Triton's own library."""
    frames = re.findall(r'"([^"]+)":(\d+):', location)
    own = [(Path(path), line) for path, line in frames if "/triton/language/" not in path]
    return f"{own[0][0].parent.name}/{own[0][0].name}:{own[0][1]}" if own else "unknown line"


def scattered_reductions(ttgir: str) -> list[str]:
    """Messages on reductions over lanes whose bits are not consecutive, each once.

    A reduction whose text or layout is not understood is one of them.
    """
    aliases = dict(re.findall(r"^(#\w+) = (.*)$", ttgir, re.MULTILINE))
    messages = {}
    for text in ttgir.split('"tt.reduce"(')[1:]:
        match = _REDUCE.match(text)
        if match is None:
            messages["a reduction whose TTGIR is not understood"] = None
            continue
        axis, layout = int(match["axis"]), _expand(match["layout"], aliases)
        bits = _lane_bits(layout, axis, int(match["shape"].split("x")[axis]))
        line = _source_line(_expand(match["location"] or "", aliases))
        if bits is None:
            messages[f"{line} reduces a layout that is not understood: {layout}"] = None
        elif bits and bits[-1] - bits[0] >= len(bits):
            messages[f"{line} reduces over lane bits {bits}, which are not consecutive"] = None
    return list(messages)
