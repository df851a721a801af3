"""How far an image lies from a manifold: projections onto the true one, onto neighbours' spans, onto tangent spaces.

The true manifold is {dec(z)}: z is really optimized, from several starts. The released code of the paper has its
backward and step lines commented out, so that its projection is the original image by construction; nothing here does
that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm


@dataclass(frozen=True)
class Manifold:
    """A manifold {dec(z; context) : low <= z <= high} with its derivative.

    decode(z, *context) -> images [P, C, H, W]; linearize(z, *context) -> images and Jacobian [P, pixels, D]; z: [P,
    D]; context: tensors [P] that stay fixed (font and letter, say); low, high: [D].
    """

    decode: Callable[..., Tensor]
    linearize: Callable[..., tuple[Tensor, Tensor]]
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Projection:
    """The nearest points found: z [S, B, D] from S starts for B images, and their distance [S, B] to the images."""

    z: Tensor
    distance: Tensor

    def best(self) -> tuple[Tensor, Tensor]:
        """The nearest point over the starts: z [B, D], distance [B]."""
        distance, start = self.distance.min(0)
        return self.z[start, torch.arange(len(start), device=start.device)], distance


Method = Callable[[Manifold, Tensor, Tensor, tuple[Tensor, ...]], Projection]


def project(
    manifold: Manifold,
    target: Tensor,
    z: Tensor,
    context: tuple[Tensor, ...],
    *,
    method: Method,
    starts: int = 5,
    candidates: int = 256,
    generator: torch.Generator,
    batch: int = 50,
    label: str | None = None,
) -> Projection:
    """Minimize |dec(z) - target| from the given codes (the first start) and from `starts` random ones.

    target: [B, C, H, W]; z: [B, D]; context: tensors [B]. Of `candidates` uniform points of the box those nearest to
    the target become random starts, since far ones end in local minima. batch: images in work at a time.
    """
    parts = []
    batches = torch.arange(len(z), device=z.device).split(batch)
    for rows in tqdm(batches, label, disable=label is None, leave=False):
        fixed = tuple(part[rows] for part in context)
        random = _random_starts(manifold, target[rows], fixed, starts, candidates, generator)
        parts.append(method(manifold, target[rows], torch.cat([z[rows][None], random]), fixed))
    return Projection(torch.cat([p.z for p in parts], 1), torch.cat([p.distance for p in parts], 1))


def _random_starts(
    manifold: Manifold,
    target: Tensor,
    context: tuple[Tensor, ...],
    starts: int,
    candidates: int,
    generator: torch.Generator,
) -> Tensor:
    """The best of uniform points in the box: [S, B, D]."""
    shape = (candidates, len(target), len(manifold.low))
    unit = torch.rand(shape, generator=generator, device=generator.device).to(target.device)
    z = manifold.low + (manifold.high - manifold.low) * unit
    distance = torch.stack([l2(manifold.decode(part, *context) - target) for part in z])  # [candidates, B]
    nearest = distance.topk(starts, dim=0, largest=False).indices
    return z.gather(0, nearest[:, :, None].expand(-1, -1, z.shape[2]))


def levenberg_marquardt(
    manifold: Manifold, target: Tensor, start: Tensor, context: tuple[Tensor, ...], *, steps: int = 30
) -> Projection:
    """Minimize |dec(z) - target|^2 over the box by damped Gauss-Newton steps, every pair with its own damping.

    target: [B, C, H, W]; start: [S, B, D]; context: tensors [B]. A step is kept only if it comes nearer. Coordinates
    that a bound blocks are held still, so that the others can move along the bound.
    """
    low, high, starts = manifold.low, manifold.high, len(start)
    context = tuple(part.repeat(starts) for part in context)
    flat = target.flatten(1).repeat(starts, 1)  # [P, pixels]
    z = start.flatten(0, 1).clamp(low, high)
    damping = torch.full((len(z), 1), 1e-2, device=z.device)
    squared, gradient, curvature = _normal_equations(manifold, z, context, flat)
    for _ in range(steps):
        free = ~((z <= low) & (gradient > 0) | (z >= high) & (gradient < 0))
        candidate = (z - _damped(curvature, gradient, free, damping)).clamp(low, high)
        new_squared, new_gradient, new_curvature = _normal_equations(manifold, candidate, context, flat)
        nearer = (new_squared < squared)[:, None]
        z, squared = torch.where(nearer, candidate, z), torch.minimum(squared, new_squared)
        gradient = torch.where(nearer, new_gradient, gradient)
        curvature = torch.where(nearer[:, :, None], new_curvature, curvature)
        damping = torch.where(nearer, damping / 3, damping * 4).clamp(1e-7, 1e7)
    return Projection(z.view(start.shape), squared.sqrt().view(start.shape[:2]))


def _normal_equations(
    manifold: Manifold, z: Tensor, context: tuple[Tensor, ...], flat: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """|e|^2 [P], J'e [P, D] and J'J [P, D, D] of the error e = dec(z) - target."""
    image, slope = manifold.linearize(z, *context)
    error = image.flatten(1) - flat
    return error.square().sum(1), (slope.mT @ error[:, :, None])[:, :, 0], slope.mT @ slope


def _damped(curvature: Tensor, gradient: Tensor, free: Tensor, damping: Tensor) -> Tensor:
    """Solve (J'J + damping diag(J'J)) step = J'e over the free coordinates: [P, D]."""
    curvature = curvature * (free[:, :, None] & free[:, None, :])  # [P, D, D]
    scale = curvature.diagonal(dim1=1, dim2=2)
    ridge = damping * scale + 1e-6 * (1 + scale.amax(1, keepdim=True))
    return torch.as_tensor(torch.linalg.solve(curvature + torch.diag_embed(ridge), gradient * free))


def adam_schedule(
    manifold: Manifold, target: Tensor, start: Tensor, context: tuple[Tensor, ...], *, steps: int = 100
) -> Projection:
    """The same minimum by the released schedule: Adam, rate .09, times .95 every 10 of 100 steps; the best iterate.

    Source: Stutz et al., CVPR 2019, section 3.2; the schedule is the released code's, whose steps were switched off.
    """
    low, high, starts = manifold.low, manifold.high, len(start)
    context = tuple(part.repeat(starts) for part in context)
    flat = target.flatten(1).repeat(starts, 1)
    z = start.flatten(0, 1).clamp(low, high).requires_grad_()
    best, nearest = z.detach().clone(), torch.full((len(z),), torch.inf, device=z.device)
    optimizer = torch.optim.Adam([z], lr=0.09)
    for step in range(steps + 1):
        optimizer.param_groups[0]["lr"] = 0.09 * 0.95 ** (step // 10)
        optimizer.zero_grad()
        squared = (manifold.decode(z, *context).flatten(1) - flat).square().sum(1)
        squared.sum().backward()
        with torch.no_grad():
            distance = squared.sqrt()
            nearer = distance < nearest
            best[nearer], nearest[nearer] = z[nearer], distance[nearer]
            optimizer.step()
            z.clamp_(low, high)
    return Projection(best.view(start.shape), nearest.view(start.shape[:2]))


def l2(images: Tensor) -> Tensor:
    """Euclidean length of every row: [B, ...] -> [B]."""
    norm: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return norm


def off_span(v: Tensor, basis: Tensor, *, rcond: float = 1e-5) -> Tensor:
    """What of v lies outside the span of the basis (least squares): [B, D], [B, D, k] -> [B, D].

    Directions whose singular value is below rcond times the largest count as missing, so repeated or zero columns are
    harmless.
    """
    left, values, _ = torch.linalg.svd(basis, full_matrices=False)
    left = left * (values > rcond * values[:, :1])[:, None]
    inside: Tensor = left @ (left.mT @ v[:, :, None])
    return v - inside[:, :, 0]


def tangent_angle(delta: Tensor, jacobian: Tensor) -> Tensor:
    """Angle in degrees between delta and the tangent space spanned by the Jacobian: [B, ...], [B, pixels, D] -> [B].

    90 is orthogonal. A random direction has about arccos(sqrt(D / pixels)).
    """
    flat = delta.flatten(1)
    sine = l2(off_span(flat, jacobian)) / l2(flat)
    return sine.clamp(0, 1).asin().rad2deg()


def neighbours(query: Tensor, train: Tensor, k: int, *, batch: int = 256) -> Tensor:
    """Rows of the k nearest training images by Euclidean distance: [B, ...], [N, ...] -> [B, k].

    Raises ValueError if k is not between 1 and N.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k = {k} neighbours were asked for among {len(train)} training images.")
    flat = train.flatten(1)
    parts = [torch.cdist(part, flat).topk(k, largest=False).indices for part in query.flatten(1).split(batch)]
    return torch.cat(parts)


def off_neighbours(query: Tensor, x: Tensor, train: Tensor, *, k: int = 50, batch: int = 256) -> tuple[Tensor, Tensor]:
    """Residual of query - x outside the span of its k nearest training images, centred at x, and its length.

    query, x: [B, C, H, W]; train: [N, C, H, W] -> residual [B, C, H, W], distance [B]. Source: Stutz et al., CVPR
    2019, section 3.2 (least squares on 50 neighbours).
    """
    nearest = neighbours(query, train, k)
    flat, centre = train.flatten(1), x.flatten(1)
    parts = []
    for rows in torch.arange(len(x), device=x.device).split(batch):
        basis = (flat[nearest[rows]] - centre[rows, None]).mT  # [b, D, k]
        parts.append(off_span(query[rows].flatten(1) - centre[rows], basis))
    residual = torch.cat(parts)
    return residual.view(x.shape), residual.norm(dim=1)
