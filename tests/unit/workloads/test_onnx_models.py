"""Generated models are what they are called, run in the real ONNX Runtime, and are the same every time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polythrottle.cli.models import app
from polythrottle.errors import InvalidInputError
from polythrottle_agent.workloads.onnx_models import BERTS, EFFICIENTNETS, KINDS, Bert, make, make_bert

onnxruntime = pytest.importorskip("onnxruntime")
np = pytest.importorskip("numpy")


def parameters(model) -> int:
    return sum(math.prod(weight.dims) for weight in model.graph.initializer)


def session(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("size", "published_m"), [("b0", 5.29), ("b4", 19.3)])
def test_efficientnets_have_the_published_number_of_parameters(size: str, published_m: float) -> None:
    assert parameters(make("efficientnet", size)) / 1e6 == pytest.approx(published_m, rel=0.02)


def test_a_bert_of_base_shape_has_the_published_number_of_parameters_in_each_layer() -> None:
    """Counted on two narrow depths: a layer of BERT-base holds 7.09 M parameters."""
    base = BERTS["base"]

    def shaped(n_layers: int) -> Bert:
        return Bert(n_layers, base.hidden, base.n_heads, base.intermediate, 8, 8)

    layer = parameters(make_bert(shaped(2))) - parameters(make_bert(shaped(1)))
    assert layer / 1e6 == pytest.approx(7.09, rel=0.01)


@pytest.mark.parametrize("batch", [1, 3])
def test_an_efficientnet_answers_a_batch_with_finite_scores(batch: int) -> None:
    model = make("efficientnet", "tiny")
    side = EFFICIENTNETS["tiny"].resolution
    images = np.random.default_rng(1).standard_normal((batch, 3, side, side), dtype="float32")
    (logits,) = session(model).run(None, {"image": images})
    assert logits.shape == (batch, 10)
    assert np.isfinite(logits).all()
    # A dead network would say the same of every image.
    assert batch == 1 or np.abs(logits[0] - logits[1]).max() > 1e-6


def test_each_image_of_a_batch_is_answered_as_it_would_be_alone() -> None:
    run = session(make("efficientnet", "tiny")).run
    images = np.random.default_rng(1).standard_normal((4, 3, 64, 64), dtype="float32")
    (together,) = run(None, {"image": images})
    alone = np.concatenate([run(None, {"image": images[i : i + 1]})[0] for i in range(4)])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("length", [1, 17, 128])
def test_a_bert_takes_sequences_of_any_length(length: int) -> None:
    ids = np.random.default_rng(1).integers(0, 1000, (2, length))
    ones = np.ones_like(ids)
    feed = {"input_ids": ids, "attention_mask": ones, "token_type_ids": np.zeros_like(ids)}
    (hidden,) = session(make("bert", "tiny")).run(None, feed)
    assert hidden.shape == (2, length, BERTS["tiny"].hidden)
    assert np.isfinite(hidden).all()


def test_a_bert_does_not_look_at_masked_tokens() -> None:
    run = session(make("bert", "tiny")).run
    ids = np.random.default_rng(1).integers(0, 1000, (1, 8))
    mask = np.asarray([[1, 1, 1, 1, 1, 0, 0, 0]])
    other = ids.copy()
    other[0, 5:] = 7

    def hidden(tokens):
        feed = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return run(None, feed)[0][0, :5]

    np.testing.assert_allclose(hidden(ids), hidden(other), atol=1e-5)


def test_heads_must_divide_the_hidden_size() -> None:
    with pytest.raises(InvalidInputError, match="3 heads"):
        make_bert(Bert(1, 64, 3, 64, 100, 16))


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_same_seed_gives_the_same_file_and_another_one_another(kind: str) -> None:
    def content(seed: int) -> bytes:
        return make(kind, "tiny", seed).SerializeToString()

    assert content(1) == content(1)
    assert content(1) != content(2)


# The command


def run(*arguments: object):
    return CliRunner().invoke(app, ["make", *map(str, arguments)], catch_exceptions=True)


def refused(*arguments: object) -> str:
    error = run(*arguments).exception
    assert isinstance(error, InvalidInputError), error
    assert "\n" not in str(error)
    return str(error)


def test_the_command_writes_a_model_that_runs(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    done = run("efficientnet", file, "--size", "tiny")
    assert done.exit_code == 0, done.exception
    assert "efficientnet tiny" in done.output
    onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_the_command_does_not_write_over_a_file_unless_told_to(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    file.write_text("mine")
    assert "--force" in refused("bert", file, "--size", "tiny")
    assert file.read_text() == "mine"
    assert run("bert", file, "--size", "tiny", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("kind", "size", "says"),
    [
        ("efficientnett", "tiny", "did you mean efficientnet"),
        ("bert", "b0", "known: tiny, mini, base"),
        ("resnet", None, "known: bert, efficientnet"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, kind: str, size: str | None, says: str) -> None:
    chosen = [] if size is None else ["--size", size]
    assert says in refused(kind, tmp_path / "net.onnx", *chosen)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "net.onnx"
    assert str(missing) in refused("bert", missing, "--size", "tiny")
    assert "is a directory" in refused("bert", tmp_path, "--size", "tiny")
    file = tmp_path / "file"
    file.touch()
    assert str(file / "net.onnx") in refused("bert", file / "net.onnx", "--size", "tiny")
