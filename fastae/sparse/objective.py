"""The objective of a sparse autoencoder, assembled from its parts without an [N, H] matrix.

A selection finds the entries of the code; :mod:`.gradients` gives them their gradients. Entries of all
prefixes (Matryoshka) and of dead latents (AuxK) are further levels of one code, so that every weight has one
gradient. Codes with many entries run over dense blocks instead (:mod:`.streamed`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import batch_entries, entries_above, top_entries
from ..ops.segments import segments_of
from ..plain import refuse_transforms
from ..tensors import sum_dtype
from .bags import Entries, entries_of, fixed_offsets
from .code import SparseAutoencoderLoss, SparseCode
from .deferred import DeferredGradients
from .gradients import AtLatents, BagSums, Decode, DecodeLoss, Preactivations
from .options import SparseObjective
from .shard import LatentShard
from .specs import AuxK, BatchTopK, Gated, JumpReLU, Sparsity, TopK
from .streamed import Plan, Streamed, Vectors, activate

P = ParamSpec("P")
R = TypeVar("R")

_SPARSE_BELOW = 0.05  # share of entries below which a threshold's code is handled entry by entry


def opaque(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function between torch.compile's graphs: the number of entries depends on data.

    ``torch.compiler.disable`` imports the compiler, which takes seconds, so it waits until there is one.
    """
    disable: Any = torch.compiler.disable
    disabled = functools.cache(lambda: disable(function))

    @functools.wraps(function)
    def wrapped(*args: P.args, **options: P.kwargs) -> R:
        called = disabled() if "torch._dynamo" in sys.modules else function
        return called(*args, **options)

    wrapped._torchdynamo_disable = True  # pyright: ignore[reportAttributeAccessIssue]
    return wrapped


class Weights(NamedTuple):
    """The parameters of a sparse autoencoder, in the dtypes of the products."""

    weight: Tensor  # [H, D]
    bias: Tensor | None  # [H]
    decoder_weight: Tensor  # [H, Do]
    decoder_bias: Tensor | None  # [Do]
    skip: Tensor | None  # [Do, D]
    vectors: Vectors
    deferred: DeferredGradients | None = None  # takes the weights' gradients in place of autograd
    shard: LatentShard | None = None  # these are some latents of a dictionary

    @property
    def latents(self) -> int:
        return len(self.weight)


class Outcome(NamedTuple):
    """A loss, the code where it was asked for, and which latents are active anywhere (bool [H])."""

    loss: SparseAutoencoderLoss
    code: SparseCode | None
    fired: Tensor
    least: Tensor  # the least value that a selection kept, a scalar; 0 without entries


class Errors(NamedTuple):
    """Squared errors that were summed where a code was decoded."""

    squares: Tensor  # [1 or 2, N]: of the reconstruction, and of the residual's estimate by dead latents
    residual: Tensor  # [N, Do]: a constant


class Parts(NamedTuple):
    """Contribution of one code to the objective."""

    prefixes: Tensor | None  # [G, N, Do]: the part of the reconstruction by each prefix's own latents
    dead: Tensor | None  # [N, Do]: the residual's estimate by dead latents
    errors: Errors | None  # in place of both
    gates: Tensor | None  # [N, Do]: the reconstruction by gates alone
    l1: Tensor | None  # [N]
    l0: Tensor | None  # [N]
    fired: Tensor  # bool [H]
    code: SparseCode | None
    least: Tensor


def select(rule: Sparsity, x: Tensor, w: Weights, most: int | None = None) -> tuple[Tensor, ...] | None:
    """Pre-activations [E] and latents [E] of the entries that a rule may keep, and offsets [N + 1].

    Gradients of thresholds need entries just below them, too. ``None`` where a threshold is passed by more
    than ``most`` entries.
    """
    weight, bias, vectors = w.weight.detach(), w.bias, w.vectors
    if isinstance(rule, TopK):
        z, latents = top_entries(x, weight, bias, min(rule.k, w.latents))
        if w.shard is not None:
            return w.shard.largest(z, latents, rule.k)
        return z.flatten(), latents.flatten(), fixed_offsets(len(x), rule.k, x.device)
    if isinstance(rule, BatchTopK) and vectors.threshold is None:
        number = int(rule.k * len(x))
        found = batch_entries(x, weight, bias, number)
        return found if w.shard is None else w.shard.largest_of_all(*found, number)
    bound = torch.zeros((), dtype=sum_dtype(weight.dtype), device=x.device)
    if isinstance(rule, BatchTopK) and vectors.threshold is not None:
        bound = vectors.threshold.clamp_min(0.0)
    elif isinstance(rule, JumpReLU) and vectors.threshold is not None:
        bound = vectors.threshold - rule.reach
    elif isinstance(rule, Gated) and vectors.gate_bias is not None:
        bound = -vectors.gate_bias
    return entries_above(x, weight, bias, bound.detach(), most)


def evaluate(
    o: SparseObjective, w: Weights, x: Tensor, target: Tensor, dead: Tensor | None, want_code: bool
) -> Outcome:
    """The objective on rows x [N, D] with targets [N, Do]; ``dead`` (bool [H]) with AuxK.

    That of topk without AuxK has shapes that do not depend on data, and can be part of a compiled graph.
    """
    refuse_transforms("losses of sparse codes", "fastae.sparse.reference")
    static = isinstance(o.activation, TopK) and o.auxk is None and w.shard is None
    return (_evaluate if static else _opaque_evaluate)(o, w, x, target, dead, want_code)


def _evaluate(
    o: SparseObjective, w: Weights, x: Tensor, target: Tensor, dead: Tensor | None, want_code: bool
) -> Outcome:
    center = w.decoder_bias if o.center else None
    centred = (x if center is None else x - center).detach().to(w.weight.dtype)
    total = w.latents if w.shard is None else w.shard.total
    ends = (total,) if o.matryoshka is None else o.matryoshka.widths
    norms = torch.linalg.vector_norm(w.decoder_weight, dim=1) if o.l1 else None
    dead_latents, number = None, 0
    if o.auxk is not None and dead is not None:
        dead_latents = dead.nonzero().flatten()
        number = len(dead_latents)
    own, shard, skip = x, w.shard, None
    if w.skip is not None:
        skip = F.linear(x.to(w.skip.dtype), w.skip)
        skip = skip.to(sum_dtype(skip.dtype))
    if shard is not None:
        number = shard.count(number, x.device)
        ends, own = shard.ends(ends), shard.shared(x)
        center = None if center is None else shard.shared(center)

    with torch.no_grad():
        most = None if type(o.activation).selects else int(_SPARSE_BELOW * len(x) * w.latents)
        found = select(o.activation, centred, w, most)
    if found is None:
        parts = _streamed_parts(o, w, own, center, centred, ends, norms, dead_latents, number)
        if want_code:
            parts = parts._replace(code=encode(o.activation, w, x, center))
    else:
        # a sum of several parts has no error before they are summed
        goal = None if shard is not None or len(ends) > 1 else target if skip is None else target - skip
        parts = _sparse_parts(o, w, own, center, centred, found, ends, norms, dead_latents, number, goal)
    if shard is not None:
        parts = _joined(parts, shard)
    return Outcome(_loss(o, w, skip, target, parts, number), parts.code, parts.fired, parts.least)


def _joined(parts: Parts, shard: LatentShard) -> Parts:
    """The parts by all processes' latents, but for what is by latent."""
    partial = {
        "prefixes": parts.prefixes,
        "dead": parts.dead,
        "gates": parts.gates,
        "l1": parts.l1,
        "l0": parts.l0,
    }
    return parts._replace(**{name: None if t is None else shard.sum(t) for name, t in partial.items()})


_opaque_evaluate = opaque(_evaluate)


def encode(rule: Sparsity, w: Weights, x: Tensor, center: Tensor | None) -> SparseCode:
    """The code of rows x [N, D], with its gradients."""
    refuse_transforms("sparse codes", "fastae.sparse.reference")
    return (_encode if isinstance(rule, TopK) else _opaque_encode)(rule, w, x, center)


def _encode(rule: Sparsity, w: Weights, x: Tensor, center: Tensor | None) -> SparseCode:
    centred = (x if center is None else x - center).detach().to(w.weight.dtype)
    with torch.no_grad():
        found = select(rule, centred, w)
    assert found is not None
    z, latents, offsets = found
    entries = entries_of(latents, offsets, w.latents)
    z = Preactivations.apply(z, x, center, w.weight, w.bias, centred, w.deferred, *entries)
    h = activate(rule, z, w.vectors, lambda v: AtLatents.apply(v, *entries))
    return _code(rule, h.code, latents, offsets, w.weight.dtype)


_opaque_encode = opaque(_encode)


def _code(rule: Sparsity, values: Tensor, latents: Tensor, offsets: Tensor, dtype: torch.dtype) -> SparseCode:
    """A rule's code from entries in order of rows; entries of a threshold that are 0 are left out."""
    values = values.to(dtype)
    if isinstance(rule, TopK) and len(values) == (len(offsets) - 1) * rule.k:
        shape = len(offsets) - 1, rule.k
        return SparseCode(values.view(shape), latents.view(shape))
    if not type(rule).selects:
        kept = values > 0
        counts = torch.zeros(len(offsets) - 1, dtype=torch.int64, device=offsets.device)
        counts.index_add_(0, segments_of(offsets, len(latents)), kept.long())
        offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        values, latents = values[kept], latents[kept]
    return SparseCode(values, latents, offsets)


def _sparse_parts(
    o: SparseObjective,
    w: Weights,
    x: Tensor,
    center: Tensor | None,
    centred: Tensor,
    found: tuple[Tensor, ...],
    ends: tuple[int, ...],
    norms: Tensor | None,
    dead_latents: Tensor | None,
    dead: int,
    target: Tensor | None,
) -> Parts:
    """The parts by entries; with a ``target`` [N, Do] of the decoder, errors in place of reconstructions."""
    z, latents, offsets = found
    rows, number = len(x), len(z)
    by_row = None
    if len(ends) > 1:
        z, latents, offsets, by_row = _by_prefix(z, latents, offsets, ends)
    if dead_latents is not None and o.auxk is not None:
        a_z, a_latents, a_offsets = _dead_entries(o, w, centred, dead_latents, dead)
        z, latents = torch.cat((z, a_z)), torch.cat((latents, a_latents))
        offsets = torch.cat((offsets, a_offsets[1:] + number))
    entries = entries_of(latents, offsets, w.latents)

    def at(vector: Tensor) -> Tensor:
        return AtLatents.apply(vector, *entries)[:number]

    z = Preactivations.apply(z, x, center, w.weight, w.bias, centred, w.deferred, *entries)
    h = activate(o.activation, z[:number], w.vectors, at)
    values = h.code
    if dead_latents is not None and o.auxk is not None:
        values = torch.cat((values, _dead_values(o, w, z, number, entries)))
    prefixes = estimate = errors = None
    if target is not None:
        errors = Errors(
            *DecodeLoss.apply(values, w.decoder_weight, target, w.decoder_bias, w.deferred, number, *entries)
        )
    else:
        levels = Decode.apply(values, w.decoder_weight, w.deferred, *entries)
        levels = levels.view(len(ends) + (dead_latents is not None), rows, w.decoder_weight.shape[1])
        prefixes, estimate = levels[: len(ends)], levels[-1] if dead_latents is not None else None

    def row_sums(values: Tensor) -> Tensor:
        return BagSums.apply(values, offsets[: len(ends) * rows + 1]).view(len(ends), rows).sum(0)

    gates = None
    if h.gate is not None:
        own = entries_of(latents[:number], offsets[: len(ends) * rows + 1], w.latents)
        gates = Decode.apply(h.gate, w.decoder_weight.detach(), None, *own)
        gates = gates.view(len(ends), rows, w.decoder_weight.shape[1]).sum(0)
    with torch.no_grad():
        # one place more takes what is not active: a mask as an index would wait for the device
        places = torch.where(h.code > 0, latents[:number], w.latents)
        fired = torch.zeros(w.latents + 1, dtype=torch.bool, device=x.device)
        fired = fired.index_fill_(0, places, True)[: w.latents]
        least = h.code.detach().min() if number else h.code.new_zeros(())
        if w.shard is not None and isinstance(o.activation, BatchTopK) and w.vectors.threshold is None:
            least = w.shard.least(h.code.detach(), int(o.activation.k * rows))
    code = h.code if by_row is None else h.code[by_row]
    return Parts(
        prefixes,
        estimate,
        errors,
        gates,
        None if norms is None else row_sums((h.code if h.gate is None else h.gate) * at(norms)),
        row_sums(h.active) if o.l0 and h.active is not None else None,
        fired,
        _code(o.activation, code, found[1], found[2], w.weight.dtype),
        least,
    )


def _streamed_parts(
    o: SparseObjective,
    w: Weights,
    x: Tensor,
    center: Tensor | None,
    centred: Tensor,
    ends: tuple[int, ...],
    norms: Tensor | None,
    dead_latents: Tensor | None,
    dead: int,
) -> Parts:
    plan = Plan(o.activation, ends, norms is not None, o.l0 != 0.0)
    prefixes, gates, l1, l0, fired = Streamed.apply(
        x, center, centred, w.weight, w.bias, w.decoder_weight, norms, plan, *w.vectors
    )
    estimate = None
    if dead_latents is not None:
        z, latents, offsets = _dead_entries(o, w, centred, dead_latents, dead)
        entries = entries_of(latents, offsets, w.latents)
        z = Preactivations.apply(z, x, center, w.weight, w.bias, centred, w.deferred, *entries)
        estimate = Decode.apply(_dead_values(o, w, z, 0, entries), w.decoder_weight, w.deferred, *entries)
    return Parts(prefixes, estimate, None, gates, l1, l0, fired, None, prefixes.new_zeros(()))


def _by_prefix(
    z: Tensor, latents: Tensor, offsets: Tensor, ends: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The entries in order of the prefixes that begin to hold them, then of rows; and the way back."""
    rows = len(offsets) - 1
    prefix = torch.searchsorted(torch.tensor(ends, device=z.device), latents, right=True)
    bags, order = (prefix * rows + segments_of(offsets, len(z))).sort(stable=True)
    offsets = torch.searchsorted(bags, torch.arange(len(ends) * rows + 1, device=z.device))
    return z[order], latents[order], offsets, order.argsort()


def _dead_entries(
    o: SparseObjective, w: Weights, centred: Tensor, dead_latents: Tensor, dead: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations and latents of the largest dead entries per row, and their offsets."""
    assert o.auxk is not None
    k = min(o.auxk.width(w.decoder_weight.shape[1]), dead)
    own = min(k, len(dead_latents))
    offsets = fixed_offsets(len(centred), own, centred.device)
    with torch.no_grad():
        bias = w.bias if w.vectors.gate_bias is None else w.vectors.gate_bias
        z = centred.new_zeros(len(centred), 0, dtype=sum_dtype(centred.dtype))
        latents = offsets.new_zeros(len(centred), 0)
        if own:
            z, latents = top_entries(centred, w.weight.detach(), bias, own, dead_latents)
        if w.shard is not None and k:
            z, latents, offsets = w.shard.largest(z, latents, k)
        if w.vectors.gate_bias is not None:
            z = z - w.vectors.gate_bias[latents]
    return z.flatten(), latents.flatten(), offsets


def _dead_values(o: SparseObjective, w: Weights, z: Tensor, first: int, entries: Entries) -> Tensor:
    """The values of the dead entries z[first:]."""
    assert o.auxk is not None
    own = z[first:]
    if w.vectors.gate_bias is not None:
        own = own + AtLatents.apply(w.vectors.gate_bias, *entries)[first:]
    return own.relu() if o.auxk.relu else own


def _loss(
    o: SparseObjective, w: Weights, skip: Tensor | None, target: Tensor, parts: Parts, dead: int
) -> SparseAutoencoderLoss:
    t = target.to(sum_dtype(w.decoder_weight.dtype))
    offset = t.new_zeros(()) if w.decoder_bias is None else w.decoder_bias.to(t.dtype)
    if skip is not None:
        offset = offset + skip
    (each, own), residual = _errors(parts, offset, t)
    total = reconstruction = each[-1]
    terms: dict[str, Tensor] = {}
    if o.matryoshka is not None:
        total = terms["matryoshka"] = each @ each.new_tensor(o.matryoshka.factors)
    if o.auxk is not None and own is not None:
        terms["auxk"] = _auxk(o.auxk, own, residual, t, dead)
        total = total + o.auxk.weight * terms["auxk"]
    if parts.l1 is not None:
        terms["l1"] = parts.l1.mean()
        total = total + o.l1 * terms["l1"]
    if parts.gates is not None:
        terms["gate"] = (parts.gates.to(t.dtype) + (offset.detach() - t)).square().sum(1).mean()
        total = total + terms["gate"]
    if parts.l0 is not None:
        l0 = parts.l0
        terms["l0"] = l0.mean() if o.l0_target is None else (l0 / o.l0_target - 1.0).square().mean()
        total = total + o.l0 * terms["l0"]
    return SparseAutoencoderLoss(total, reconstruction, **terms)


def _errors(parts: Parts, offset: Tensor, target: Tensor) -> tuple[tuple[Tensor, Tensor | None], Tensor]:
    """Mean squared errors of the prefixes [G] and of the residual's estimate, and the residual [N, Do].

    ``offset`` is what is added to reconstructions before they are compared with ``target`` [N, Do].
    """
    if parts.errors is not None:
        each = parts.errors.squares.mean(1)
        return (each[:1], each[1] if len(each) > 1 else None), parts.errors.residual
    assert parts.prefixes is not None
    prefixes = parts.prefixes.to(offset.dtype)
    if len(prefixes) > 1:
        prefixes = prefixes.cumsum(0)
    errors = prefixes + (offset - target)
    residual, own = -errors[-1].detach(), None
    if parts.dead is not None:
        own = (parts.dead.to(offset.dtype) - residual).square().sum(1).mean()
    return (errors.square().sum(2).mean(1), own), residual


def _auxk(a: AuxK, value: Tensor, residual: Tensor, target: Tensor, dead: int) -> Tensor:
    """The auxiliary loss from its squared error; see :func:`fastae.sparse.reference.auxk_loss`."""
    if not dead:
        return value * 0.0
    if a.ramp:
        value = value * min(dead / a.width(target.shape[1]), 1.0)
    if a.normalize == "none":
        return value
    spread = (residual if a.normalize == "residual" else target).detach().to(target.dtype)
    variance = (spread - spread.mean(0)).square().sum(1).mean()
    return value * torch.where(variance > 0, 1.0 / variance, 0.0)
