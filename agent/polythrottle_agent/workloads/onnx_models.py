"""Models to serve where none is at hand: an EfficientNet-like and a BERT-like graph with random weights.

Only the shape of the work is that of the published networks (channels, blocks, resolutions, heads); what they
answer means nothing. The same size and seed give the same file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polythrottle.errors import InvalidInputError, did_you_mean

if TYPE_CHECKING:
    import onnx

OPSET = 17
"""The first one with LayerNormalization."""
IR_VERSION = 8
"""What ONNX Runtime has read since 1.11, as found on older boards."""

BATCH = "batch"
SEQUENCE = "sequence"
"""Names of the dynamic dimensions."""


@dataclass(frozen=True)
class EfficientNet:
    """Scaling of EfficientNet: multipliers of channels and of blocks, the image's side in pixels."""

    width: float
    depth: float
    resolution: int
    n_classes: int = 1000


@dataclass(frozen=True)
class Bert:
    """Sizes of BERT; the length of a sequence is dynamic, up to `n_positions`."""

    n_layers: int
    hidden: int
    n_heads: int
    intermediate: int
    vocabulary: int = 30522
    n_positions: int = 512


EFFICIENTNETS: Mapping[str, EfficientNet] = {
    "tiny": EfficientNet(0.25, 0.3, 64, 10),
    "b0": EfficientNet(1.0, 1.0, 224),
    "b4": EfficientNet(1.4, 1.8, 380),
    "b7": EfficientNet(2.0, 3.1, 600),
}
BERTS: Mapping[str, Bert] = {
    "tiny": Bert(2, 64, 2, 256, 1000, 128),
    "mini": Bert(4, 256, 4, 1024),
    "base": Bert(12, 768, 12, 3072),
}

MBCONV: tuple[tuple[int, int, int, int, int], ...] = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Stages of EfficientNet-B0: expansion, channels, blocks, stride, kernel (Tan and Le 2019, Table 1)."""
STEM, HEAD = 32, 1280
SQUEEZE = 0.25
"""Channels of squeeze and excitation over those that enter the block."""


def make_efficientnet(size: EfficientNet, seed: int = 0) -> onnx.ModelProto:
    """MBConv blocks with squeeze-and-excitation and swish; batch norms are folded, as exporters do.

    Input `image` of N × 3 × side × side float32, output `logits` of N × classes; N is dynamic.
    """
    g = _Graph(seed)
    channels = _rounded(STEM * size.width)
    x = g.swish(g.conv("image", 3, channels, kernel=3, stride=2))
    for expansion, wanted, blocks, stride, kernel in MBCONV:
        wanted = _rounded(wanted * size.width)
        for block in range(math.ceil(blocks * size.depth)):
            x = _mbconv(g, x, channels, wanted, expansion, stride if block == 0 else 1, kernel)
            channels = wanted
    head = _rounded(HEAD * size.width)
    x = g.swish(g.conv(x, channels, head, kernel=1))
    x = g.node("Flatten", g.node("GlobalAveragePool", x), axis=1)
    g.dense(x, head, size.n_classes, output="logits")
    side = size.resolution
    return g.model(
        [("image", "FLOAT", [BATCH, 3, side, side])], [("logits", "FLOAT", [BATCH, size.n_classes])]
    )


def _mbconv(g: _Graph, x: str, channels: int, wanted: int, expansion: int, stride: int, kernel: int) -> str:
    """Expand, filter each channel, weigh the channels, project; with a shortcut where shapes allow."""
    inside = channels * expansion
    y = x if expansion == 1 else g.swish(g.conv(x, channels, inside, kernel=1))
    y = g.swish(g.conv(y, inside, inside, kernel=kernel, stride=stride, groups=inside))
    squeezed = max(1, int(channels * SQUEEZE))
    weight = g.swish(g.conv(g.node("GlobalAveragePool", y), inside, squeezed, kernel=1))
    y = g.node("Mul", y, g.node("Sigmoid", g.conv(weight, squeezed, inside, kernel=1)))
    y = g.conv(y, inside, wanted, kernel=1)
    return g.node("Add", x, y) if stride == 1 and channels == wanted else y


def _rounded(channels: float) -> int:
    """To a multiple of 8, never down by more than 10 %."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def make_bert(size: Bert, seed: int = 0) -> onnx.ModelProto:
    """Embeddings and transformer encoders, normalised after each half as in BERT.

    Inputs `input_ids`, `attention_mask` and `token_type_ids` of N × length int64, output
    `last_hidden_state` of N × length × hidden float32; N and length are dynamic.

    Raises:
        InvalidInputError: the hidden size cannot be shared out among the heads.
    """
    if size.hidden % size.n_heads:
        raise InvalidInputError(
            f"A BERT of hidden size {size.hidden} cannot have {size.n_heads} heads; "
            "take a number that divides it."
        )
    g = _Graph(seed)
    length = g.node("Gather", g.node("Shape", "input_ids"), g.constant_int(1), axis=0)
    positions = g.node("Range", g.constant_int(0), length, g.constant_int(1))
    words = g.node("Gather", g.weight([size.vocabulary, size.hidden], 0.02), "input_ids")
    places = g.node("Gather", g.weight([size.n_positions, size.hidden], 0.02), positions)
    kinds = g.node("Gather", g.weight([2, size.hidden], 0.02), "token_type_ids")
    x = g.norm(g.node("Add", g.node("Add", words, places), kinds), size.hidden)
    # 0 where a token counts and very small where it does not; N × 1 × 1 × length for all heads at once.
    mask = g.node("Cast", "attention_mask", to=_type("FLOAT"))
    mask = g.node("Unsqueeze", mask, g.constant_ints([1, 2]))
    mask = g.node("Mul", g.node("Sub", g.constant(1.0), mask), g.constant(-10000.0))
    for layer in range(size.n_layers):
        x = g.norm(g.node("Add", x, _attention(g, x, mask, size)), size.hidden)
        y = g.gelu(g.dense(x, size.hidden, size.intermediate))
        y = g.dense(y, size.intermediate, size.hidden)
        last = layer == size.n_layers - 1
        x = g.norm(g.node("Add", x, y), size.hidden, output="last_hidden_state" if last else None)
    tokens = [BATCH, SEQUENCE]
    names = ("input_ids", "attention_mask", "token_type_ids")
    return g.model(
        [(name, "INT64", tokens) for name in names], [("last_hidden_state", "FLOAT", [*tokens, size.hidden])]
    )


def _attention(g: _Graph, x: str, mask: str, size: Bert) -> str:
    """Multi-head self-attention: N × length × hidden → the same."""
    each = size.hidden // size.n_heads

    def heads(order: Sequence[int]) -> str:
        y = g.dense(x, size.hidden, size.hidden)
        y = g.node("Reshape", y, g.constant_ints([0, 0, size.n_heads, each]))
        return g.node("Transpose", y, perm=list(order))

    query, key, value = heads((0, 2, 1, 3)), heads((0, 2, 3, 1)), heads((0, 2, 1, 3))
    scores = g.node("Mul", g.node("MatMul", query, key), g.constant(1.0 / math.sqrt(each)))
    weights = g.node("Softmax", g.node("Add", scores, mask), axis=-1)
    y = g.node("Transpose", g.node("MatMul", weights, value), perm=[0, 2, 1, 3])
    return g.dense(g.node("Reshape", y, g.constant_ints([0, 0, size.hidden])), size.hidden, size.hidden)


KINDS: Mapping[str, tuple[Mapping[str, Any], Callable[[Any, int], onnx.ModelProto]]] = {
    "efficientnet": (EFFICIENTNETS, make_efficientnet),
    "bert": (BERTS, make_bert),
}
"""What can be made: its sizes and its maker."""


DEFAULT_SIZES: Mapping[str, str] = {"efficientnet": "b0", "bert": "mini"}


def make(kind: str, size: str, seed: int = 0) -> onnx.ModelProto:
    """A model of a named size.

    Raises:
        InvalidInputError: no such kind or size, or the onnx package is missing.
    """
    from importlib.util import find_spec

    if kind not in KINDS:
        raise InvalidInputError(f"No model {kind!r} can be made; {did_you_mean(kind, KINDS)}")
    sizes, maker = KINDS[kind]
    if size not in sizes:
        raise InvalidInputError(f"{kind} has no size {size!r}; {did_you_mean(size, sizes, keep_order=True)}")
    if find_spec("onnx") is None:
        raise InvalidInputError(
            "Making a model needs onnx, which is not installed; run pip install 'polythrottle[onnx]'."
        )
    return maker(sizes[size], seed)


def _type(name: str) -> int:
    from onnx import TensorProto

    return int(TensorProto.DataType.Value(name))


class _Graph:
    """Grows a graph node by node; values are known by their names."""

    def __init__(self, seed: int) -> None:
        # Here and not above: whoever imports this module may never make a model.
        import numpy as np

        self._random = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._count = 0

    def node(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        name = output or self._name(op)
        self._nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def weight(self, shape: Sequence[int], spread: float, mean: float = 0.0) -> str:
        """Normal random numbers of this standard deviation, float32."""
        from onnx import numpy_helper

        values = self._random.standard_normal(tuple(shape), dtype="float32") * spread + mean
        name = self._name("weight")
        self._weights.append(numpy_helper.from_array(values.astype("float32"), name))
        return name

    def conv(
        self, x: str, channels: int, wanted: int, *, kernel: int, stride: int = 1, groups: int = 1
    ) -> str:
        """Spread so that the signal neither grows nor fades from layer to layer."""
        fan_in = channels // groups * kernel * kernel
        weights = self.weight([wanted, channels // groups, kernel, kernel], math.sqrt(2.0 / fan_in))
        pad = (kernel - 1) // 2
        return self.node(
            "Conv",
            x,
            weights,
            self.weight([wanted], 0.01),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad, pad, pad, pad],
            group=groups,
        )

    def dense(self, x: str, inside: int, outside: int, *, output: str | None = None) -> str:
        product = self.node("MatMul", x, self.weight([inside, outside], math.sqrt(1.0 / inside)))
        return self.node("Add", product, self.weight([outside], 0.01), output=output)

    def swish(self, x: str) -> str:
        return self.node("Mul", x, self.node("Sigmoid", x))

    def gelu(self, x: str) -> str:
        erf = self.node("Erf", self.node("Mul", x, self.constant(1.0 / math.sqrt(2.0))))
        half = self.node("Mul", x, self.constant(0.5))
        return self.node("Mul", half, self.node("Add", erf, self.constant(1.0)))

    def norm(self, x: str, width: int, *, output: str | None = None) -> str:
        scale, shift = self.weight([width], 0.01, mean=1.0), self.weight([width], 0.01)
        return self.node("LayerNormalization", x, scale, shift, output=output, axis=-1, epsilon=1e-12)

    def constant(self, value: float) -> str:
        return self._constant("FLOAT", [], [value])

    def constant_int(self, value: int) -> str:
        return self._constant("INT64", [], [value])

    def constant_ints(self, values: Sequence[int]) -> str:
        return self._constant("INT64", [len(values)], list(values))

    def _constant(self, kind: str, shape: Sequence[int], values: Sequence[float]) -> str:
        from onnx import helper

        name = self._name("constant")
        self._weights.append(helper.make_tensor(name, _type(kind), list(shape), list(values)))
        return name

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{what.lower()}_{self._count}"

    def model(
        self,
        inputs: Sequence[tuple[str, str, Sequence[int | str]]],
        outputs: Sequence[tuple[str, str, Sequence[int | str]]],
    ) -> onnx.ModelProto:
        """
        Args:
            inputs, outputs: name, element type and shape of each.
        """
        from onnx import checker, helper

        def values(of: Sequence[tuple[str, str, Sequence[int | str]]]) -> list[Any]:
            return [helper.make_tensor_value_info(name, _type(kind), list(s)) for name, kind, s in of]

        graph = helper.make_graph(
            self._nodes, "polythrottle", values(inputs), values(outputs), initializer=self._weights
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="polythrottle",
        )
        checker.check_model(model)
        return model
