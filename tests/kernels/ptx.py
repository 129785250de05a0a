"""A program's PTX on a CPU: one block of threads, instruction by instruction, for what no interpreter runs.

Enough of PTX for an epilogue: arithmetic, memory, shuffles, barriers, branches that threads take apart.
Threads run in lockstep; those that went ahead wait at shuffles and barriers for the others. What is not known
raises ``NotImplementedError`` or ``KeyError``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

Lanes = np.ndarray  # a value per thread: uint64, or bool for predicates

_BASE = 1 << 32
_SHARED = 232_448


class Memory:
    """Arrays at addresses of a device's memory."""

    def __init__(self, size: int = 1 << 22) -> None:
        self.bytes, self._used = np.zeros(size, np.uint8), 256
        self._places: dict[str, tuple[int, Any]] = {}

    def put(self, name: str, array: np.ndarray) -> int:
        """The address of a copy."""
        start, self._used = self._used, -(-(self._used + array.nbytes + 1) // 256) * 256
        self.bytes[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
        self._places[name] = start, array
        return _BASE + start

    def get(self, name: str) -> np.ndarray:
        start, array = self._places[name]
        return self.bytes[start : start + array.nbytes].view(array.dtype).reshape(array.shape)


def _signed(x: Lanes, width: int) -> Any:
    return (x << np.uint64(64 - width)).view(np.int64) >> (64 - width)


def _kept(x: Any, width: int) -> Lanes:
    return np.asarray(x).astype(np.uint64) & np.uint64((1 << width) - 1)


def _float(x: Lanes) -> np.ndarray:
    return x.astype(np.uint32).view(np.float32)


def _bits(x: Any) -> Lanes:
    return np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)


def _bfloat16(x: Lanes) -> Lanes:
    """Rounded to even; for numbers, which NaN is not."""
    return (x + np.uint64(0x7FFF) + (x >> np.uint64(16) & np.uint64(1))) >> np.uint64(16) & np.uint64(0xFFFF)


def _exact(function: Callable[..., Any]) -> Callable[..., Lanes]:
    """A function of float32 that is rounded once."""

    def run(*lanes: Lanes) -> Lanes:
        with np.errstate(all="ignore"):
            return _bits(function(*[_float(x).astype(np.float64) for x in lanes]).astype(np.float32))

    return run


_FLOAT = {
    "add": _exact(np.add),
    "sub": _exact(np.subtract),
    "mul": _exact(np.multiply),
    "fma": _exact(lambda a, b, c: a * b + c),
    "ex2": _exact(np.exp2),
    "lg2": _exact(np.log2),
    "rcp": _exact(np.reciprocal),
    "neg": lambda a: a ^ np.uint64(0x80000000),
    "abs": lambda a: a & np.uint64(0x7FFFFFFF),
}
_COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def _compared(how: str, a: np.ndarray, b: np.ndarray) -> Lanes:
    """Of floats; with u also where one is NaN."""
    unordered = np.isnan(a) | np.isnan(b)
    if how in ("nan", "num"):
        return unordered == (how == "nan")
    with np.errstate(invalid="ignore"):
        found = _COMPARED[how[:2]](a, b)
    return found | unordered if how.endswith("u") and how not in _COMPARED else found & ~unordered


def _permuted(a: Lanes, b: Lanes, select: Lanes) -> Lanes:
    both, out = a | b << np.uint64(32), np.zeros_like(a)
    for place in range(4):
        number = select >> np.uint64(4 * place) & np.uint64(15)
        byte = both >> (number & np.uint64(7)) * np.uint64(8) & np.uint64(255)
        byte = np.where(number & np.uint64(8) != 0, (byte >> np.uint64(7)) * np.uint64(255), byte)
        out |= byte << np.uint64(8 * place)
    return out


def _integer(kind: str, op: str, type_: str, x: list[Lanes]) -> Lanes:
    """Integer and bitwise operations, before they are cut to a width."""
    width = int(type_[1:])
    plain = type_[0] != "s"

    def number(lanes: Lanes) -> Any:
        return _kept(lanes, width) if plain else _signed(lanes, width)

    if kind in ("add", "sub"):
        return x[0] + x[1] if kind == "add" else x[0] - x[1]
    if kind in ("mul", "mad"):
        if ".hi" in op:
            values = [[int(v) for v in number(lanes)] for lanes in x[:2]]
            return np.array(
                [(a * b >> width) & (1 << width) - 1 for a, b in zip(*values, strict=True)], np.uint64
            )
        product = (number(x[0]) * number(x[1])).astype(np.uint64)
        return product + x[2] if kind == "mad" else product
    if kind in ("shl", "shr"):
        far = x[1] >= width
        by = np.where(far, 0, x[1]).astype(np.uint64)
        if kind == "shl":
            return np.where(far, 0, x[0] << by).astype(np.uint64)
        ones = np.where(_signed(x[0], width) < 0, np.uint64((1 << 64) - 1), np.uint64(0)) if not plain else 0
        shifted = number(x[0]) >> (by if plain else by.astype(np.int64))
        return np.where(far, ones, shifted.astype(np.uint64)).astype(np.uint64)
    if kind in ("min", "max"):
        return (np.minimum if kind == "min" else np.maximum)(number(x[0]), number(x[1])).astype(np.uint64)
    if kind == "bfe":
        length = int(x[2][0])
        field = _kept(x[0] >> x[1], length)
        return field if plain else _signed(field, length).astype(np.uint64)
    if kind == "prmt":
        return _permuted(_kept(x[0], 32), _kept(x[1], 32), x[2])
    simple = {"and": lambda: x[0] & x[1], "or": lambda: x[0] | x[1], "xor": lambda: x[0] ^ x[1],
              "not": lambda: ~x[0], "neg": lambda: np.uint64(0) - x[0]}  # fmt: skip
    if kind not in simple:
        raise NotImplementedError(op)
    return simple[kind]()


class Block:
    """The threads of a block, and what they do."""

    def __init__(self, ptx: str, memory: Memory, parameters: list[int], threads: int) -> None:
        lines = [
            re.sub(r"//.*", "", line).replace("\t", " ").strip().rstrip(";") for line in ptx.splitlines()
        ]
        self.code = [line for line in lines[lines.index("{") + 1 :] if line]
        self.code = self.code[: next(i for i, line in enumerate(self.code) if line.startswith(".section"))]
        self.labels = {line[:-1]: i for i, line in enumerate(self.code) if line.endswith(":")}
        self.memory, self.shared = memory, np.zeros(_SHARED, np.uint8)
        self.parameters, self.threads = parameters, np.arange(threads, dtype=np.uint64)
        self.registers: dict[str, Lanes] = {}
        self.at = np.zeros(threads, np.int64)
        self.ended = np.zeros(threads, bool)
        self.waits = np.array([line.startswith(("bar.", "barrier")) for line in self.code])
        self.shuffles = np.array([line.startswith("shfl") for line in self.code])

    def run(self) -> None:
        while not self.ended.all():
            live = ~self.ended
            first = [self.at[w : w + 32][live[w : w + 32]] for w in range(0, len(self.at), 32)]
            apart = np.repeat([len(set(places)) > 1 for places in first], 32)
            ready = live & ~self.waits[self.at] & ~(self.shuffles[self.at] & apart)
            ready = ready if ready.any() else live
            here = int(self.at[ready].min())
            self._step(self.code[here], here, ready & (self.at == here), live)

    def _value(self, text: str) -> Lanes:
        text = text.strip()
        if text == "%tid.x":
            return self.threads
        if text.startswith(("%ctaid", "%nctaid")) or text == "global_smem":
            return np.zeros_like(self.threads)
        if text.startswith("%"):
            return self.registers.get(text, np.zeros_like(self.threads))
        number = int(text[2:], 16) if text.startswith("0f") else int(text.rstrip("U"), 0)
        return np.full_like(self.threads, number & (1 << 64) - 1)

    def _set(self, name: str, value: Any, lanes: np.ndarray) -> None:
        name = name.strip()
        if name == "_":
            return
        value = np.asarray(value)
        kind = bool if value.dtype == bool else np.uint64
        before = self.registers.get(name)
        if before is None or before.dtype != kind:
            before = np.zeros(len(self.threads), kind)
        self.registers[name] = np.where(lanes, value.astype(kind), before)

    def _step(self, line: str, here: int, group: np.ndarray, live: np.ndarray) -> None:
        self.at[group] = here + 1
        if line.startswith((".", "$", "{", "}")):
            self.ended |= group & (here + 1 >= len(self.code))
            return
        found = re.match(r"(?:@(!?)(%\w+) +)?([\w.:]+)\s*(.*)", line)
        assert found is not None, line
        no, predicate, op, rest = found.groups()
        lanes = group if predicate is None else group & (self._value(predicate).astype(bool) ^ bool(no))
        kind = op.split(".")[0]
        if kind == "ret":
            self.ended |= lanes
        elif kind == "bra":
            self.at[lanes] = self.labels[rest.strip()]
        elif kind in ("bar", "barrier"):
            assert (group == live).all(), f"threads are missing at {line}"
        elif kind == "shfl":
            self._shuffle(op, rest, lanes)
        elif op.startswith("ld.param"):
            name, place = rest.split(",", 1)
            number = re.search(r"param_(\d+)", place)
            assert number is not None, line
            width = int(re.search(r"\d+$", op)[0])  # pyright: ignore[reportOptionalSubscript]
            value = self.parameters[int(number[1])] & (1 << width) - 1
            self._set(name, np.full_like(self.threads, value), lanes)
        elif kind in ("ld", "st"):
            self._access(op, rest, lanes)
        elif kind == "mov" and "{" in rest:
            self._packed(op, rest, lanes)
        else:
            names, *given = (part.strip() for part in rest.split(","))
            self._compute(kind, op, names, [self._value(text) for text in given], lanes)

    def _compute(self, kind: str, op: str, names: str, x: list[Lanes], lanes: np.ndarray) -> None:
        parts = op.split(".")
        type_ = parts[-1]
        if kind == "setp":
            for half, name in enumerate(names.split("|")):
                if type_ == "f32" or type_.startswith("bf16"):
                    a, b = (
                        _float(v if type_ == "f32" else v >> np.uint64(16 * half) << np.uint64(16))
                        for v in x[:2]
                    )
                    self._set(name, _compared(parts[1], a, b), lanes)
                else:
                    width = int(type_[1:])
                    a, b = (_signed(v, width) if type_[0] == "s" else _kept(v, width) for v in x[:2])
                    self._set(name, _COMPARED[parts[1]](a, b), lanes)
            return
        if type_ == "pred":
            a, *other = (v.astype(bool) for v in x)
            made: Any = {"and": lambda: a & other[0], "or": lambda: a | other[0], "xor": lambda: a ^ other[0],
                         "not": lambda: ~a, "mov": lambda: a}[kind]()  # fmt: skip
            self._set(names, made, lanes)
            return
        if kind == "selp":
            value = np.where(x[2].astype(bool), x[0], x[1])
        elif kind in ("mov", "cvta"):
            value = x[0]
        elif kind == "cvt":
            value = _converted(parts[-2], type_, x)
        elif type_ == "f32":
            value = _FLOAT[kind](*(_kept(v, 32) for v in x))
        else:
            value = _integer(kind, op, type_, x)
            value = value if ".wide" in op else _kept(value, int(type_[1:]))
        self._set(names, value, lanes)

    def _packed(self, op: str, rest: str, lanes: np.ndarray) -> None:
        width = int(re.search(r"\d+$", op)[0])  # pyright: ignore[reportOptionalSubscript]
        inside = re.search(r"\{(.*)\}", rest)
        assert inside is not None
        names = inside[1].split(",")
        part = width // len(names)
        if rest.startswith("{"):
            whole = self._value(rest.rsplit(",", 1)[1])
            for number, name in enumerate(names):
                self._set(name, _kept(whole >> np.uint64(part * number), part), lanes)
        else:
            pieces = [_kept(self._value(name), part) << np.uint64(part * n) for n, name in enumerate(names)]
            self._set(rest.split(",", 1)[0], np.bitwise_or.reduce(pieces), lanes)

    def _access(self, op: str, rest: str, lanes: np.ndarray) -> None:
        size = int(re.search(r"\d+$", op)[0]) // 8  # pyright: ignore[reportOptionalSubscript]
        place = re.search(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+))?\s*\]", rest)
        assert place is not None, rest
        start = self._value(place[1]) + np.uint64(int(place[2] or "0", 0) & (1 << 64) - 1)
        space = self.shared if ".shared" in op else self.memory.bytes
        start = start if ".shared" in op else start - np.uint64(_BASE)
        others = rest.replace(place[0], "")
        for number, name in enumerate(re.findall(r"%\w+|\b_\b|-?\b\d\w*", others)):
            spots = [start[lanes] + np.uint64(number * size + byte) for byte in range(size)]
            if op.startswith("st"):
                value = self._value(name)[lanes]
                for byte, spot in enumerate(spots):
                    space[spot] = (value >> np.uint64(8 * byte)).astype(np.uint8)
            else:
                value = np.zeros_like(self.threads)
                value[lanes] = sum(
                    space[spot].astype(np.uint64) << np.uint64(8 * b) for b, spot in enumerate(spots)
                )
                self._set(name, value, lanes)

    def _shuffle(self, op: str, rest: str, lanes: np.ndarray) -> None:
        names, value, by, bound = (part.strip() for part in rest.split(",")[:4])
        lane, by_lane = self.threads % np.uint64(32), self._value(by)
        how = op.split(".")[2]
        if how == "bfly":
            source = lane ^ by_lane
            known = source <= (self._value(bound) & np.uint64(31))
        elif how == "idx":
            source, known = by_lane & np.uint64(31), np.ones(len(lane), bool)
        else:
            raise NotImplementedError(op)
        source = self.threads - lane + np.where(known, source, lane)
        name, _, valid = names.partition("|")
        self._set(name, self._value(value)[source], lanes)
        if valid:
            self._set(valid, known, lanes)


def _converted(to: str, from_: str, x: list[Lanes]) -> Lanes:
    if (to, from_) == ("bf16x2", "f32"):
        return _bfloat16(_kept(x[0], 32)) << np.uint64(16) | _bfloat16(_kept(x[1], 32))
    if (to, from_) == ("f32", "bf16"):
        return _kept(x[0], 16) << np.uint64(16)
    if from_[0] in "su":
        width = int(from_[1:])
        number: Any = _signed(x[0], width) if from_[0] == "s" else _kept(x[0], width)
        return _bits(number.astype(np.float32)) if to == "f32" else _kept(number, int(to[1:]))
    raise NotImplementedError(f"cvt.{to}.{from_}")
