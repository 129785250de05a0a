"""Sparse autoencoders and transcoders as one module with independent options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import check_linear
from ..checks import check_whole
from ..ops.selection import LargestOfAll, tiles
from ..tensors import as_rows, autocast_like_linear, normalize_rows_, project_rows_
from .code import SparseAutoencoderLoss, SparseCode
from .deferred import DeferredGradients
from .functional import Gate, prepare, sparse_decode
from .objective import Weights, encode, evaluate
from .options import SparseOptions
from .shard import LatentShard
from .specs import AuxK, BatchTopK, Gated, JumpReLU, Matryoshka, Sparsity
from .streamed import Vectors

_MEDIAN_ROWS = 32768
_BATCH_TOPK_START = 0.01
_MEDIAN_STEPS = 64


class SparseEncoder(nn.Module):
    """The encoder's parameters: ``weight`` [H, D] as in ``nn.Linear``, and ``bias`` [H] or ``None``."""

    bias: nn.Parameter | None

    def __init__(self, features: int, latents: int, bias: bool, device: Any, dtype: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(latents, features, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(latents, device=device, dtype=dtype)) if bias else None
        )

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias. Hooks of this call may compute or change them."""
        return self.weight, self.bias


class SparseDecoder(nn.Module):
    """The decoder's parameters: ``weight`` [H, Do], a row per latent, and ``bias`` [Do]."""

    def __init__(self, features: int, latents: int, device: Any, dtype: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(latents, features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(features, device=device, dtype=dtype))

    def forward(self) -> tuple[Tensor, Tensor]:
        """The weight and the bias. Hooks of this call may compute or change them."""
        return self.weight, self.bias


class SparseAutoencoder(nn.Module):
    """A dictionary of sparse codes: an autoencoder, or with ``out_features`` a transcoder.

    Memory does not depend on code_features beyond parameters and gradients; see
    :func:`fastae.functional.sparse_autoencoder_loss` for the objective.

        sae = fastae.nn.SparseAutoencoder(512, 32768, "topk:32", auxk=fastae.AuxK()).initialize_(rows)
        step = TrainingStep(sae, fastae.optim.constrain(torch.optim.Adam(sae.parameters(), 1e-4), sae))

    Args:
        in_features: width of the input, D.
        code_features: number of latents, H.
        activation: a sparsity rule, or its text: ``"topk:32"``, ``"batch_topk:32"``, ``"jump_relu"``,
            ``"relu"``, ``"gated"``.
        auxk: the auxiliary loss for latents that have not been active for long.
        matryoshka: prefixes of the dictionary that reconstruct on their own.
        l1: weight of the sum of activations times the norms of their decoder rows.
        l0: weight of the number of active latents (jump_relu).
        l0_target: penalise the squared relative distance of that number from this one instead.
        out_features: width of the output of a transcoder, trained by ``forward(x, target)``.
        center: whether the decoder's bias is subtracted from the input; by default for autoencoders only.
        skip: whether the output has a linear term of the input.
        normalization: of each row before the encoder, undone after the decoder: ``"none"``, ``"layer_norm"``
            or ``"norm"`` (to the square root of the width). Losses are those of normalised rows.

    Attributes:
        encoder.weight, encoder.bias: [H, D] and [H]; a gated encoder has no bias.
        decoder.weight, decoder.bias: [H, Do] and [Do].
        threshold: [H], float32, for jump_relu; for batch_topk a scalar buffer, -1 while it is unset.
        gate_bias, magnitude, magnitude_bias: [H], for gated.
        skip: [Do, D], or ``None``.
        rows_since_fired: rows trained on since each latent was last active, int64 [H].

    Raises:
        ValueError: an argument that does not fit, named.
    """

    threshold: nn.Parameter | Tensor
    rows_since_fired: Tensor
    skip: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        code_features: int,
        activation: Sparsity | str = "topk:32",
        *,
        auxk: AuxK | None = None,
        matryoshka: Matryoshka | None = None,
        l1: float = 0.0,
        l0: float = 0.0,
        l0_target: float | None = None,
        out_features: int | None = None,
        center: bool | None = None,
        skip: bool = False,
        normalization: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_features = check_whole("in_features:", in_features)
        code_features = check_whole("code_features:", code_features)
        if out_features is not None and normalization != "none":
            raise ValueError(f"normalization: expected none with out_features, got {normalization!r}")
        self.options = SparseOptions(
            activation=activation,  # pyright: ignore[reportArgumentType]
            center=out_features is None if center is None else center,
            auxk=auxk,
            matryoshka=matryoshka,
            l1=l1,
            l0=l0,
            l0_target=l0_target,
            skip=skip,
            normalization=normalization,
        )
        self.options.check_latents(code_features)
        rule = self.options.activation
        outputs = in_features if out_features is None else check_whole("out_features:", out_features)
        if self.options.center and outputs != in_features:
            raise ValueError(f"center: needs as many outputs as inputs, got {outputs} and {in_features}")
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.encoder = SparseEncoder(in_features, code_features, not isinstance(rule, Gated), **place)
        self.decoder = SparseDecoder(outputs, code_features, **place)
        self.register_parameter(
            "skip", nn.Parameter(torch.zeros(outputs, in_features, **place)) if skip else None
        )
        if isinstance(rule, JumpReLU):
            self.threshold = nn.Parameter(torch.empty(code_features, device=device, dtype=torch.float32))
        elif isinstance(rule, BatchTopK):
            self.register_buffer("threshold", torch.tensor(-1.0, device=device, dtype=torch.float32))
        elif isinstance(rule, Gated):
            for name in ("gate_bias", "magnitude", "magnitude_bias"):
                setattr(self, name, nn.Parameter(torch.zeros(code_features, **place)))
        self.register_buffer("rows_since_fired", torch.zeros(code_features, dtype=torch.int64, device=device))
        self.deferred_gradients: DeferredGradients | None = None  # of an optimizer that takes them so
        self.shard: LatentShard | None = None  # where other processes hold the other latents
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw decoder rows on the sphere, copied to the encoder where shapes allow; set biases to 0."""
        nn.init.normal_(self.decoder.weight)
        self.normalize_decoder_()
        if self.decoder.weight.shape == self.encoder.weight.shape:
            self.encoder.weight.copy_(self.decoder.weight)
        else:
            nn.init.normal_(self.encoder.weight, std=self.in_features**-0.5)
        nn.init.zeros_(self.decoder.bias)
        for name in ("gate_bias", "magnitude", "magnitude_bias"):
            if hasattr(self, name):
                nn.init.zeros_(getattr(self, name))
        if self.encoder.bias is not None:
            nn.init.zeros_(self.encoder.bias)
        if self.skip is not None:
            nn.init.zeros_(self.skip)
        if isinstance(self.options.activation, JumpReLU):
            nn.init.constant_(self.threshold, self.options.activation.threshold)

    @property
    def in_features(self) -> int:
        return self.encoder.weight.shape[1]

    @property
    def code_features(self) -> int:
        return self.encoder.weight.shape[0] if self.shard is None else self.shard.total

    @property
    def out_features(self) -> int:
        return self.decoder.weight.shape[1]

    @property
    def dead(self) -> Tensor:
        """The latents, bool [H], that count as dead: not active for ``auxk.dead_after`` rows."""
        auxk = self.options.auxk or AuxK()
        return self.rows_since_fired >= auxk.dead_after

    def forward(self, x: Tensor, target: Tensor | None = None) -> SparseAutoencoderLoss:
        """The objective on x [*, D], with a target [*, Do] for transcoders.

        In training mode it also counts rows since each latent was active (over all processes of a
        ``torch.distributed`` group), keeps thresholds of jump_relu from being negative, and follows the
        threshold of batch_topk.
        """
        rule = self.options.activation
        if self.training and isinstance(rule, JumpReLU):
            with torch.no_grad():
                self.threshold.clamp_min_(0.0)
        if target is not None and self.options.normalization != "none":
            raise ValueError(f"target: expected None with normalization {self.options.normalization!r}")
        normalised = self._normalise(x)[0]
        dead = None if self.options.auxk is None else self.dead
        (weight, bias), (decoder_weight, decoder_bias) = self.encoder(), self.decoder()
        w = prepare(
            self.options,
            normalised,
            weight,
            bias,
            decoder_weight,
            decoder_bias,
            self._threshold(not self.training),
            self._gate(),
            self.skip,
            target,
            dead,
            self.code_features,
        )._replace(deferred=self.deferred_gradients, shard=self.shard)
        rows = as_rows(normalised)
        outcome = evaluate(self.options, w, rows, rows if target is None else as_rows(target), dead, False)
        if self.training:
            self._count(len(rows), outcome.fired)
            if isinstance(rule, BatchTopK) and len(rows):
                self._follow(outcome.least.float(), rule.momentum)
        return outcome.loss

    def encode(self, x: Tensor) -> SparseCode:
        """The code of x [*, D]: [*, k] for topk, ragged over the flattened rows for the others.

        batch_topk compares with its threshold, or selects over the rows given while that is unset.
        """
        return self._encode(self._normalise(x)[0])

    def _encode(self, normalised: Tensor) -> SparseCode:
        if self.shard is not None:
            raise ValueError("sae: expected a whole dictionary to encode with, got one that is sharded")
        (weight, bias), (decoder_weight, decoder_bias) = self.encoder(), self.decoder()
        check_linear("x", normalised, weight, bias)
        weight, bias = autocast_like_linear(weight, bias)
        vectors = Vectors(self._threshold(True), *(self._gate() or ()))
        w = Weights(weight, bias, decoder_weight, None, None, vectors)
        center = decoder_bias if self.options.center else None
        code = encode(self.options.activation, w, as_rows(normalised), center)
        if code.offsets is None and normalised.dim() != 2:
            shape = (*normalised.shape[:-1], code.values.shape[-1])
            code = SparseCode(code.values.view(shape), code.indices.view(shape))
        return code

    def decode(self, code: SparseCode) -> Tensor:
        """The reconstruction of a code, [*, Do], or [N, Do] of a ragged one; without the linear term.

        It is that of normalised rows where ``normalization`` is on.
        """
        weight, bias = self.decoder()
        return sparse_decode(code.values, code.indices, weight, bias, code.offsets)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The reconstruction [*, Do] of x [*, D], in the scale of x."""
        normalised, mean, scale = self._normalise(x)
        out = self.decode(self._encode(normalised)).view(*x.shape[:-1], self.out_features)
        if self.skip is not None:
            out = out + F.linear(normalised, self.skip)
        return out if scale is None else out * scale + (0.0 if mean is None else mean)

    # --- start and end of training --------------------------------------------------------------------------

    @torch.no_grad()
    def initialize_(self, x: Tensor, target: Tensor | None = None) -> SparseAutoencoder:
        """Start from rows x [*, D] of the data (Gao et al. 2024, A.1); returns the module.

        The decoder's bias becomes the geometric median of the target (of at most 32,768 rows, evenly spaced),
        decoder rows are drawn on the sphere, the encoder's weight is a copy of them, and is then scaled so
        that reconstructions have the length of the rows about that bias. For batch_topk they have a hundredth
        of it (rows of norm 0.1 on both sides, folded): long rows would take the entries of all while
        directions are random, and small random directions are soon outgrown. Draw x from all of the data.
        """
        self.reset_parameters()
        rows = as_rows(self._normalise(x)[0])
        targets = rows if target is None else as_rows(target)
        if not len(rows):
            raise ValueError("x: needs at least one row")
        step = -(-len(rows) // _MEDIAN_ROWS)
        rows, targets = rows[::step], targets[::step]
        self.decoder.bias.copy_(geometric_median(targets))
        estimate = self.decode(self._encode(rows)) - self.decoder.bias
        length = (targets - self.decoder.bias).norm(dim=1).mean()
        own = estimate.norm(dim=1).mean()
        if own > 0 and length > 0:
            share = _BATCH_TOPK_START if isinstance(self.options.activation, BatchTopK) else 1.0
            self.encoder.weight.mul_(share * length / own)
        return self

    @torch.no_grad()
    def normalize_decoder_(self) -> None:
        """Scale the decoder's rows to norm 1; rows of zeros stay."""
        normalize_rows_(self.decoder.weight)

    @torch.no_grad()
    def project_decoder_gradient_(self) -> None:
        """Remove the part of the decoder's gradient along its rows, which scaling them to norm 1 undoes."""
        if self.decoder.weight.grad is not None:
            project_rows_(self.decoder.weight.grad, self.decoder.weight)

    @torch.no_grad()
    def calibrate_threshold_(self, batches: Tensor | Iterable[Tensor]) -> Tensor:
        """Set the threshold of batch_topk so that it keeps k entries per row of the batches; returns it.

        It is just below the int(k N)-th largest value over all N rows, exactly, where the running average of
        training lags behind. ``batches`` [*, D] are held in memory together.

        Raises:
            ValueError: another activation, or no rows.
        """
        rule = self.options.activation
        if not isinstance(rule, BatchTopK):
            raise ValueError(f"activation: only batch_topk has a threshold to calibrate, got {rule}")
        given = [batches] if isinstance(batches, Tensor) else list(batches)
        rows = [as_rows(self._normalise(batch)[0]) for batch in given]
        total = sum(len(batch) for batch in rows)
        number = int(rule.k * total)
        if not number:
            raise ValueError("batches: needs at least one row")
        largest = LargestOfAll(number)
        (weight, bias), center = self.encoder(), self.decoder()[1] if self.options.center else None
        first = 0
        for batch in rows:
            centred = batch if center is None else batch - center
            for tile in tiles(centred.to(weight.dtype), weight, bias):
                largest.add(tile, first)
            first += len(batch)
        values = largest.result().values
        least = values.min() if len(values) == number else values.new_zeros(())
        below = torch.nextafter(least.float(), torch.zeros_like(least, dtype=torch.float32))
        return self.threshold.copy_(below)

    # --- helpers --------------------------------------------------------------------------------------------

    def _normalise(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The rows normalised, and the mean and scale that undo it."""
        if self.options.normalization == "layer_norm":
            mean = x.mean(-1, keepdim=True)
            scale = x.std(-1, keepdim=True)
            return (x - mean) / (scale + 1e-5), mean, scale
        if self.options.normalization == "norm":
            scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            scale = scale.where(scale > 0, 1.0)
            return x / scale, None, scale
        return x, None, None

    def _threshold(self, inference: bool) -> Tensor | None:
        rule = self.options.activation
        if isinstance(rule, JumpReLU) or (isinstance(rule, BatchTopK) and inference and self.threshold >= 0):
            return self.threshold
        return None

    def _gate(self) -> Gate | None:
        if isinstance(self.options.activation, Gated):
            return Gate(self.gate_bias, self.magnitude, self.magnitude_bias)  # pyright: ignore[reportArgumentType]
        return None

    def _has_replicas(self) -> bool:
        """Whether other processes train the same latents on other rows."""
        if self.shard is not None:
            return self.shard.replicas is not None
        return torch.distributed.is_available() and torch.distributed.is_initialized()

    @property
    def _replicas(self) -> Any:
        return None if self.shard is None else self.shard.replicas

    @torch.no_grad()
    def _count(self, rows: int, fired: Tensor) -> None:
        number: Tensor | int = rows
        if self._has_replicas():
            number = torch.tensor(rows, device=fired.device)
            torch.distributed.all_reduce(number, group=self._replicas)
            everywhere = fired.to(torch.uint8)
            torch.distributed.all_reduce(everywhere, torch.distributed.ReduceOp.MAX, group=self._replicas)
            fired = everywhere.bool()
        self.rows_since_fired.add_(number).masked_fill_(fired, 0)

    @torch.no_grad()
    def _follow(self, least: Tensor, momentum: float) -> None:
        if self._has_replicas():
            torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN, group=self._replicas)
        followed = torch.lerp(least, self.threshold, momentum)
        self.threshold.copy_(torch.where(self.threshold < 0, least, followed))

    def extra_repr(self) -> str:
        defaults, widths = SparseOptions(), f"{self.in_features}, {self.code_features}"
        if self.out_features != self.in_features:
            widths += f", out_features={self.out_features}"
        changed = {k: v for k, v in vars(self.options).items() if v != getattr(defaults, k)}
        changed["activation"] = self.options.activation
        return ", ".join([widths, *(f"{name}={value!s}" for name, value in changed.items())])


def geometric_median(rows: Tensor) -> Tensor:
    """The point with the least sum of distances to rows [N, D], by Weiszfeld's iteration in float32."""
    rows = rows.float() if rows.dtype != torch.float64 else rows
    median = rows.mean(0)
    for _ in range(_MEDIAN_STEPS):
        weights = 1.0 / (rows - median).norm(dim=1).clamp_min(1e-8)
        following = weights @ rows / weights.sum()
        moved = (following - median).norm()
        median = following
        if moved <= 1e-6 * median.norm():
            break
    return median
