"""Does a figure's JS compute what torch computes? For a live widget or for one found in an executed notebook.

`parity(state)` runs the JS that the figure carries (its own `_esm`, in node) on the weights that it carries,
and torch on the same weights.
"""

from __future__ import annotations

import base64
import json
import math
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets
import nbformat
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"


class Parity(NamedTuple):
    """The largest absolute differences between JS and torch; where there is a flow, its bits count as logits."""

    image: float
    logits: float


def state_of(widget: ipywidgets.Widget) -> dict[str, Any]:
    """The state of a live widget, as its page gets it."""
    return dict(widget.get_state())


def published_states(notebook: Path) -> list[dict[str, Any]]:
    """The states of all figures with classifiers in an executed notebook, their bytes decoded."""
    models = nbformat.read(notebook, as_version=4).metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    states = []
    for model in models.values():
        buffers = {b["path"][0]: base64.b64decode(b["data"]) for b in model.get("buffers", [])}
        states.append({**model["state"], **buffers})
    return [state for state in states if "classifier" in state or "classifiers" in state]


def parity(state: dict[str, Any], *, count: int = 50, seed: int = 0) -> Parity:
    """The differences at `count` random places of the sliders, on the attack's path, and on as many images of noise."""
    generator = torch.Generator().manual_seed(seed)
    images, shown = _maker(state)(state, count, generator)
    noise = torch.rand(images.shape, generator=generator)
    # Each side classifies the images that it made itself, as the page does; each of several networks its own share.
    networks = _classifiers(state)
    made, seen, drawn = (batch.chunk(len(networks)) for batch in (images, shown, noise))
    jobs = [net_job(net, "n", torch.cat(parts)) for net, *parts in zip(networks, seen, drawn, strict=True)]
    expected = [
        run_torch(net["n"], net["n_weights"], torch.cat(parts))
        for net, *parts in zip(networks, made, drawn, strict=True)
    ]
    differences = [largest(*pair) for pair in zip(run_js(state["_esm"], jobs), expected, strict=True)]
    return Parity(largest(shown, images), max(differences))


def _classifiers(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Every packed classifier of a figure, as a state where it is called n."""
    if "encoder" in state:  # a flow gives likelihoods of the same images
        networks = _classifiers({name: value for name, value in state.items() if name != "encoder"})
        return [*networks, {"n": state["encoder"], "n_weights": state["flow_weights"]}]
    if "classifiers" in state:
        return [{"n": layers, "n_weights": state["classifiers_weights"]} for layers in state["classifiers"]]
    return [{"n": state["classifier"], "n_weights": state["classifier_weights"]}]


def _maker(state: dict[str, Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    """What makes a figure's images by torch and by JS."""
    if "encoder" in state:
        return _joint
    if "decoders" in state:
        return _learned
    if "path" in state:
        return attacked
    if "directions" in state:
        return _principal
    if "classifiers" in state:
        return _directed
    return _decoded if "decoder" in state else _walked


def run_js(module: str, jobs: list[dict[str, Any]]) -> list[Tensor]:
    """Runs jobs through a figure's JS (its text) in node: one [B, ...] a job."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.mjs"
        path.write_text(module, encoding="utf-8")
        command = ["node", str(Path(__file__).with_suffix(".mjs")), str(path)]
        done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [_stacked(outcome) for outcome in json.loads(done.stdout)]


def net_job(state: dict[str, Any], name: str, inputs: Tensor) -> dict[str, Any]:
    """A job for `run_js`: the layers called `name` on inputs [B, ...]."""
    return {
        "layers": state[name],
        "weights": base64.b64encode(bytes(state[f"{name}_weights"])).decode(),
        "shape": list(inputs.shape[1:]),
        "inputs": inputs.flatten(1).tolist(),
    }


def run_torch(layers: list[dict[str, Any]], weights: bytes, x: Tensor) -> Tensor:
    """What packed layers mean, by torch: [B, ...] -> [B, ...]."""
    for layer in layers:
        x = _LAYERS[layer["op"]](x, layer, {k: _tensor(v, bytes(weights)) for k, v in layer["tensors"].items()})
    return x


def largest(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; another shape is an error."""
    if a.shape != b.shape:
        raise ValueError(f"JS gives {list(a.shape)} where torch gives {list(b.shape)}.")
    return (a.double() - b.double()).abs().max().item()


def _conv2d(x: Tensor, layer: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    return F.conv2d(x, tensors["weight"], tensors["bias"], layer["stride"], layer["padding"])


def _conv_transpose2d(x: Tensor, layer: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    weight = tensors["weight"].permute(3, 0, 1, 2)  # packed as [out, h, w, in]
    return F.conv_transpose2d(x, weight, tensors["bias"], layer["stride"], layer["padding"], layer["output_padding"])


def _fonts(z: Tensor, layer: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    # Written out a second time on purpose: the formula is what is tested.
    tx, ty, hx, hy, s, r = z[:, :6].unbind(1)
    c, n = r.cos(), r.sin()
    entries = [s * (c + n * hx), s * (-n + c * hx), tx, s * (n + c * hy), s * (c - n * hy), ty]
    prototype = tensors["prototypes"].float()[z[:, 6].long(), z[:, 7].long()][:, None] / 255  # [B, 1, H, W]
    grid = F.affine_grid(torch.stack(entries, 1).view(-1, 2, 3), list(prototype.shape), align_corners=True)
    return F.grid_sample(prototype, grid, padding_mode="zeros", align_corners=True).clamp(0, 1)


class Coded(NamedTuple):
    """What goes through a flow: numbers, flat, [B, D], and log |det| of the Jacobian so far, [B]."""

    numbers: Tensor
    log_det: Tensor | float = 0.0


def _on_last(x: Any, layer: dict[str, Any], change: Callable[[Tensor], tuple[Tensor, Any]]) -> Coded:
    """A layer of a flow on the last of the numbers, in the layer's shape."""
    flat, log_det = x if isinstance(x, Coded) else Coded(x)
    before, last = flat.split([flat.shape[1] - math.prod(layer["shape"]), math.prod(layer["shape"])], 1)
    changed, more = change(last.unflatten(1, layer["shape"]))
    return Coded(torch.cat([before, changed.flatten(1)], 1), log_det + more)


def _logit(x: Any, layer: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    margin, levels = layer["margin"], layer["levels"]
    if layer["inverse"]:
        s = (x.numbers.sigmoid() - margin) / (1 - 2 * margin)
        return ((s * levels - 0.5) / (levels - 1)).clamp(0, 1)
    x = x.flatten(1).double().requires_grad_()
    logits = torch.logit(margin + (1 - 2 * margin) * ((levels - 1) * x + 0.5) / levels)
    (slope,) = torch.autograd.grad(logits.sum(), x)
    return Coded(logits.detach().float(), slope.log().sum(1))


def _squeeze(x: Any, layer: dict[str, Any], tensors: dict[str, Tensor]) -> Coded:
    if not layer["inverse"]:
        return _on_last(x, layer, lambda h: (F.pixel_unshuffle(h, 2), 0.0))
    channels, height, width = layer["shape"]
    folded = {**layer, "shape": [4 * channels, height // 2, width // 2]}
    return _on_last(x, folded, lambda h: (F.pixel_shuffle(h, 2), 0.0))


def _mix(x: Any, layer: dict[str, Any], tensors: dict[str, Tensor]) -> Coded:
    area = math.prod(layer["shape"][1:])
    log_det = area * torch.linalg.slogdet(tensors["weight"][:, :, 0, 0].double())[1]
    return _on_last(x, layer, lambda h: (F.conv2d(h, tensors["weight"], tensors["bias"]), log_det))


def _coupling(x: Any, layer: dict[str, Any], tensors: dict[str, Tensor]) -> Coded:
    def change(h: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = h[:, : layer["kept"]], h[:, layer["kept"] :]
        hidden = F.conv2d(kept, tensors["weight_1"], tensors["bias_1"], padding=1).relu()
        hidden = F.conv2d(hidden, tensors["weight_2"], tensors["bias_2"]).relu()
        shift, raw = F.conv2d(hidden, tensors["weight_3"], tensors["bias_3"], padding=1).chunk(2, 1)
        scale = (layer["reach"] * raw.tanh()).exp()
        made = (moved - shift) / scale if layer["inverse"] else moved * scale + shift
        return torch.cat([kept, made], 1), scale.log().flatten(1).sum(1) * (-1 if layer["inverse"] else 1)

    return _on_last(x, layer, change)


def _bits_per_dim(x: Coded, layer: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    log_likelihood = torch.distributions.Normal(0.0, 1.0).log_prob(x.numbers.double()).sum(1) + x.log_det
    return (math.log(layer["levels"] - 1) - log_likelihood / x.numbers.shape[1])[:, None] / math.log(2)


_LAYERS: dict[str, Any] = {
    "bits_per_dim": _bits_per_dim,
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "coupling": _coupling,
    "flatten": lambda x, layer, tensors: x.flatten(1),
    "fonts": _fonts,
    "logit": _logit,
    "mix": _mix,
    "squeeze": _squeeze,
    "linear": lambda x, layer, tensors: F.linear(x, tensors["weight"], tensors["bias"]),
    "relu": lambda x, layer, tensors: F.relu(x),
    "sigmoid": lambda x, layer, tensors: torch.sigmoid(x),
    "softmax": lambda x, layer, tensors: F.softmax(x, 1),
    "unflatten": lambda x, layer, tensors: x.unflatten(1, layer["shape"]),
}


def _tensor(reference: dict[str, Any], weights: bytes) -> Tensor:
    if reference["dtype"] == "int8":
        return _from_levels(reference, weights)
    dtype = {"float32": "<f4", "float16": "<f2", "uint8": "u1"}[reference["dtype"]]
    count = math.prod(reference["shape"])
    flat = torch.from_numpy(np.frombuffer(weights, dtype, count, reference["offset"]).copy()).view(reference["shape"])
    return flat.float() if reference["dtype"] == "float16" else flat


def _from_levels(reference: dict[str, Any], weights: bytes) -> Tensor:
    """A float32 scale for each output channel, then the levels that count it."""
    (channels, *_), start = reference["shape"], reference["offset"]
    scales = np.frombuffer(weights, "<f4", channels, start)
    levels = np.frombuffer(weights, "i1", math.prod(reference["shape"]), start + scales.nbytes)
    return torch.from_numpy(levels.reshape(channels, -1) * scales[:, None]).view(reference["shape"])


def _decoded(state: dict[str, Any], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random z through the decoder: images [B, 1, H, W] by torch and by JS."""
    draws = torch.rand(count, len(state["controls"]), generator=generator)  # [B, 8]
    z = torch.stack([_place(c, u) for c, u in zip(_by_theta(state["controls"]), draws.unbind(1), strict=True)], 1)
    images = run_torch(state["decoder"], state["decoder_weights"], z)
    (shown,) = run_js(state["_esm"], [net_job(state, "decoder", z)])
    return images, shown


def _by_theta(controls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Theta's sliders, then font, then letter: the order of z."""
    selectors = {control["name"]: control for control in controls if "options" in control}
    return [control for control in controls if "options" not in control] + [
        selectors["font"],
        selectors["letter"],
    ]


def _place(control: dict[str, Any], u: Tensor) -> Tensor:
    if "options" in control:
        return (u * len(control["options"])).floor()
    low, high = control["min"] / control["per"], control["max"] / control["per"]
    return low + (high - low) * u


def attacked(state: dict[str, Any], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every example at all steps of its path and at random moves in the budget: images [B, 1, H, W], torch and JS."""
    theta, path = (torch.from_numpy(np.frombuffer(bytes(state[k]), "<f4").copy()) for k in ("theta", "path"))
    theta = theta.view(-1, 1, len(state["eta"]))  # [E, 1, 6]
    path = path.view(len(theta), -1, len(state["eta"]))  # [E, T + 1, 6]
    moves = torch.tensor(state["eta"]) * (2 * torch.rand(len(theta), count, len(state["eta"]), generator=generator) - 1)
    zeta = torch.cat([path, moves], 1)
    moved = (theta + zeta).clamp(torch.tensor(state["low"]), torch.tensor(state["high"]))
    example = torch.arange(len(theta)).view(-1, 1, 1).expand(-1, zeta.shape[1], -1)
    z = torch.cat([moved, example, torch.zeros_like(example)], 2)  # [E, T + 1 + count, 8]
    images = run_torch(state["decoder"], state["decoder_weights"], z.flatten(0, 1))
    decoder = net_job(state, "decoder", z[0, :0])
    box = {"low": state["low"], "high": state["high"]}
    jobs = [
        {**decoder, "theta": t.flatten().tolist(), "zetas": its.tolist(), "box": box, "example": i}
        for i, (t, its) in enumerate(zip(theta, zeta, strict=True))
    ]
    return images, torch.cat(run_js(state["_esm"], jobs))


def _walked(state: dict[str, Any], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every example at random t: images [B, 1, H, W] by torch and by JS."""
    shape = state["image_shape"]
    x, delta = (torch.from_numpy(np.frombuffer(bytes(state[k]), "<f4").copy()) for k in ("images", "deltas"))
    x, delta = x.view(-1, 1, *shape), delta.view(-1, 1, *shape)  # [N, 1, 1, H, W]
    low, high = state["ts"][0], state["ts"][-1]
    t = low + (high - low) * torch.rand(count, generator=generator)  # [T]
    images = (x + t.view(-1, 1, 1, 1) * delta).clamp(0, 1)  # [N, T, 1, H, W]
    jobs = [
        {"x": a.flatten().tolist(), "delta": d.flatten().tolist(), "shape": shape, "ts": t.tolist()}
        for a, d in zip(x, delta, strict=True)
    ]
    shown = torch.cat(run_js(state["_esm"], jobs))
    return images.flatten(0, 1), shown


def _directed(state: dict[str, Any], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every network's every example at random t, network by network: images [B, 1, H, W] by torch and by JS."""
    (last,) = (control["max"] for control in state["controls"] if control["name"] == "t")
    images = bytes(state["images"]) * len(state["classifiers"])
    return _walked({**state, "images": images, "ts": [0, last]}, count, generator)


def _principal(state: dict[str, Any], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every class at random zeta: images [B, 1, H, W] by torch and by JS."""
    shape, classes = state["image_shape"], len(state["class_names"])
    types = {"means": "<u2", "directions": "<i2", "steps": "<f4"}
    means, directions, steps = (
        torch.from_numpy(np.frombuffer(bytes(state[k]), t).astype("f4")) for k, t in types.items()
    )
    zeta = 6 * torch.rand(classes, count, len(steps) // classes, generator=generator) - 3  # [K, B, n]
    moves = steps.view(-1, 1) * directions.view(len(steps), -1)  # [K n, D]
    moved = means.view(classes, 1, -1) / 65535 + zeta @ moves.view(classes, -1, moves.shape[1])
    packed = {name: base64.b64encode(bytes(state[name])).decode() for name in types}
    jobs = [
        {"classes": packed, "shape": shape, "label": label, "zetas": its.tolist()} for label, its in enumerate(zeta)
    ]
    return moved.clamp(0, 1).view(-1, *shape), torch.cat(run_js(state["_esm"], jobs))


def _learned(state: dict[str, Any], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every class's codes, the ends of their paths and random z, each by its own decoder: images [B, 1, H, W]."""
    classes = len(state["class_names"])
    codes, paths = (torch.from_numpy(np.frombuffer(bytes(state[k]), "<f4").copy()) for k in ("codes", "paths"))
    latents = sum(control["name"].startswith("z_") for control in state["controls"])
    codes = codes.view(classes, -1, latents)  # [K, E, D]
    ends = codes + paths.view(*codes.shape[:2], -1, latents)[:, :, -1] if len(paths) else codes
    drawn = 4 * torch.rand(classes, count, latents, generator=generator) - 2
    z = torch.cat([codes, ends.clamp(-2, 2), drawn], 1)  # [K, E + E + count, D]
    decoders, weights = state["decoders"], bytes(state["decoders_weights"])
    used = [decoders[label % len(decoders)] for label in range(classes)]  # one decoder may serve all classes
    images = torch.cat([run_torch(layers, weights, its) for layers, its in zip(used, z, strict=True)])
    jobs = [net_job({"n": layers, "n_weights": weights}, "n", its) for layers, its in zip(used, z, strict=True)]
    return images, torch.cat(run_js(state["_esm"], jobs))


def _joint(state: dict[str, Any], count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` joint examples at random a and b, and as many places along directions: images [B, C, H, W]."""
    shape, length = state["image_shape"], math.prod(state["image_shape"])
    types = {"codes": "<f4", "zetas": "i1", "deltas": "i1", "mean": "<f2", "directions": "<f2"}
    codes, zetas, deltas, mean, directions = (
        torch.from_numpy(np.frombuffer(bytes(state[k]), t).astype("f4")).view(-1, length) for k, t in types.items()
    )
    every, way = torch.arange(count) % len(zetas), torch.arange(count) % len(directions)  # zetas: [N E, D]
    a, b, u = torch.rand(3, count, 1, generator=generator)
    attacked = codes[every % len(codes)] + 2 * a * zetas[every] * (state["eta"] / 127)
    z = torch.cat([attacked, mean + (6 * u - 3) * directions[way]])
    pixels = 2 * b * deltas[every] * (state["eps"] / 127)
    delta = torch.cat([pixels, torch.zeros_like(pixels)]).view(-1, *shape)
    made = run_torch(state["decoder"], state["flow_weights"], z)
    (shown,) = run_js(state["_esm"], [net_job({"n": state["decoder"], "n_weights": state["flow_weights"]}, "n", z)])
    order = torch.randperm(len(z), generator=generator)  # since each network is shown a part of them
    return (made + delta).clamp(0, 1)[order], (shown + delta).clamp(0, 1)[order]


def _stacked(outcome: list[dict[str, Any]]) -> Tensor:
    return torch.stack([torch.tensor(one["data"]).view(one["shape"]) for one in outcome])
