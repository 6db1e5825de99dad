"""Inputs from a signature or a file: plausible, of the right shape, or one sentence why not."""

from __future__ import annotations

from pathlib import Path

import pytest

np = pytest.importorskip("numpy")

from polythrottle_agent.workloads.onnx_inputs import (  # noqa: E402 - numpy may be missing
    IMAGE_SIDE,
    SEQUENCE_LENGTH,
    Input,
    Samples,
    Unusable,
    resize,
)

FLOAT, INT = "tensor(float)", "tensor(int64)"


def samples(*inputs: Input, data: Path | None = None) -> Samples:
    return Samples(inputs, data, seed=1)


def refusal(*inputs: Input, data: Path | None = None) -> str:
    with pytest.raises(Unusable) as error:
        samples(*inputs, data=data)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("one", "shape"),
    [
        (Input("x", FLOAT, ("batch", 3, 224, 224)), (5, 3, 224, 224)),
        (Input("x", FLOAT, (None, 16)), (5, 16)),
        (Input("x", FLOAT, ("N", 3, "height", "width")), (5, 3, IMAGE_SIDE, IMAGE_SIDE)),
        (Input("x", FLOAT, ("unk__1", None, None, 3)), (5, IMAGE_SIDE, IMAGE_SIDE, 3)),
        (Input("x", FLOAT, ("batch_size", 3, None, None)), (5, 3, IMAGE_SIDE, IMAGE_SIDE)),
        (Input("input_ids", INT, ("batch", "sequence")), (5, SEQUENCE_LENGTH)),
        (Input("input_ids", INT, ("batch", None)), (5, SEQUENCE_LENGTH)),
        (Input("mel", FLOAT, ("batch", 80, "n_frames")), (5, 80, SEQUENCE_LENGTH)),
    ],
)
def test_dynamic_dimensions_get_sensible_sizes(one: Input, shape: tuple[int, ...]) -> None:
    made = samples(one)
    assert made.fixed_batch is None
    array = made.batch(5)[one.name]
    assert array.shape == shape
    assert array.dtype == one.dtype


def test_values_suit_what_an_input_is_called() -> None:
    shape = ("batch", "sequence")
    feed = samples(
        Input("input_ids", INT, shape),
        Input("attention_mask", INT, shape),
        Input("token_type_ids", INT, shape),
        Input("position_ids", INT, shape),
        Input("flag", "tensor(bool)", ("batch",)),
        Input("pixels", "tensor(uint8)", ("batch", 4, 4, 3)),
    ).batch(3)
    assert len(np.unique(feed["input_ids"])) > 20
    assert feed["input_ids"].max() < 100
    assert (feed["attention_mask"] == 1).all()
    assert (feed["token_type_ids"] == 0).all()
    assert feed["position_ids"][2].tolist() == list(range(SEQUENCE_LENGTH))
    assert feed["flag"].dtype == bool
    assert feed["pixels"].max() > 150


def test_queries_differ_from_one_another_and_come_in_turn() -> None:
    made = samples(Input("x", FLOAT, ("batch", 8)))
    first, second = made.batch(2)["x"], made.batch(2)["x"]
    assert not np.array_equal(first, second)
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize(
    ("inputs", "fixed"),
    [
        ([Input("x", FLOAT, (1, 3, 8, 8))], 1),
        ([Input("x", FLOAT, (4, 3, 8, 8))], 4),
        ([Input("x", FLOAT, (4, 8)), Input("y", FLOAT, (4, 2))], 4),
        ([Input("x", FLOAT, (16,))], 1),
        ([Input("x", FLOAT, ())], 1),
        ([Input("tokens", INT, ("seq_len",))], 1),
    ],
)
def test_a_model_without_a_free_batch_dimension_is_called_with_its_own_shape(
    inputs: list[Input], fixed: int
) -> None:
    made = samples(*inputs)
    assert made.fixed_batch == fixed
    feed = made.batch(1)
    for one in inputs:
        expected = tuple(SEQUENCE_LENGTH if isinstance(size, str) else size for size in one.shape)
        assert feed[one.name].shape == expected


def test_an_input_without_a_batch_dimension_is_shared_by_the_batch() -> None:
    feed = samples(Input("x", FLOAT, ("batch", 8)), Input("scale", FLOAT, ())).batch(3)
    assert feed["x"].shape == (3, 8)
    assert feed["scale"].shape == ()


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (Input("x", FLOAT, ("batch", "features")), "a dimension 'features' (number 2 of 2)"),
        (Input("x", FLOAT, ("batch", None)), "a dimension (number 2 of 2)"),
        (Input("words", "tensor(string)", ("batch",)), "tensor(string)"),
        (Input("boxes", "seq(tensor(float))", ("batch", 4)), "seq(tensor(float))"),
    ],
)
def test_what_cannot_be_made_is_said(one: Input, says: str) -> None:
    assert says in refusal(one)


def test_a_size_that_cannot_be_told_can_be_given(tmp_path: Path) -> None:
    one = Input("x", FLOAT, ("batch", "features"))
    assert "--data FILE.npz" in refusal(one)
    file = tmp_path / "samples.npz"
    np.savez(file, x=np.arange(12.0).reshape(4, 3))
    made = samples(one, data=file)
    assert made.batch(3)["x"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    # Further on in the file, and from its start again.
    assert made.batch(2)["x"].tolist() == [[9, 10, 11], [0, 1, 2]]
    assert made.batch(1)["x"].dtype == np.float32


def test_samples_of_one_input_may_have_any_name_and_several_must_match(tmp_path: Path) -> None:
    file = tmp_path / "samples.npz"
    np.savez(file, arr_0=np.zeros((2, 3), "float32"))
    assert samples(Input("x", FLOAT, ("batch", 3)), data=file).batch(1)["x"].shape == (1, 3)
    two = [Input("x", FLOAT, ("batch", 3)), Input("y", FLOAT, ("batch", 3))]
    assert "holds 'arr_0', but the model's inputs are x, y" in refusal(*two, data=file)
    np.savez(file, x=np.zeros((2, 3), "float32"))
    assert "lacks 'y'" in refusal(*two, data=file)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 4), "float32"), "is any × 3, but the data are 2 × 4"),
        (np.zeros((0, 3), "float32"), "0 × 3"),
        (np.zeros(3, "float32"), "but the data are 3"),
        (np.zeros((2, 3), "complex64"), "of type float32, but the data are of type complex64"),
    ],
)
def test_samples_that_do_not_fit_are_refused(tmp_path: Path, array, says: str) -> None:
    file = tmp_path / "samples.npz"
    np.savez(file, x=array)
    assert says in refusal(Input("x", FLOAT, ("batch", 3)), data=file)


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    one = Input("x", FLOAT, ("batch", 3))
    assert "is not there" in refusal(one, data=tmp_path / "missing.npz")
    text = tmp_path / "text.npz"
    text.write_text("hello")
    assert "cannot be read as .npz" in refusal(one, data=text)
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04" + bytes(40))
    assert "cannot be read as .npz" in refusal(one, data=broken)
    single = tmp_path / "single.npy"
    np.save(single, np.zeros((2, 3)))
    assert "holds no named arrays" in refusal(one, data=single)


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "objects.npz"
    np.savez(file, x=np.asarray([{"any": "object"}], dtype=object))
    assert "cannot be read as .npz" in refusal(Input("x", FLOAT, ("batch", 3)), data=file)


# Pictures that are pre-processed


def pictures(tmp_path: Path, n: int = 3) -> Path:
    file = tmp_path / "pictures.npz"
    np.savez(file, image=np.random.default_rng(1).integers(0, 256, (n, 120, 160, 3)).astype("uint8"))
    return file


@pytest.mark.parametrize(
    ("shape", "prepared"), [(("batch", 3, 32, 48), (3, 32, 48)), (("batch", 32, 48, 3), (32, 48, 3))]
)
def test_pictures_are_prepared_for_an_input_that_wants_floats(
    tmp_path: Path, shape: tuple[str, int, int, int], prepared: tuple[int, ...]
) -> None:
    made = samples(Input("image", FLOAT, shape), data=pictures(tmp_path))
    assert made.images is not None
    ready = [made.prepare(i) for i in range(2)]
    assert ready[0].shape == prepared
    # Uniform pixels, normalised: near the mean of what ImageNet's statistics make of 127.5.
    assert float(ready[0].mean()) == pytest.approx(0.22, abs=0.1)
    feed = made.batch(2, ready)
    assert feed["image"].shape == (2, *prepared)
    np.testing.assert_array_equal(feed["image"][1], ready[1])


def test_pictures_for_a_model_of_one_fixed_batch_get_its_shape(tmp_path: Path) -> None:
    made = samples(Input("image", FLOAT, (2, 3, 32, 48)), data=pictures(tmp_path))
    assert made.batch(2, [made.prepare(0), made.prepare(1)])["image"].shape == (2, 3, 32, 48)


def test_pictures_are_left_alone_where_the_model_takes_bytes(tmp_path: Path) -> None:
    one = Input("image", "tensor(uint8)", ("batch", 120, 160, 3))
    made = samples(one, data=pictures(tmp_path))
    assert made.images is None
    assert made.batch(2)["image"].shape == (2, 120, 160, 3)


def test_resizing_keeps_a_flat_picture_flat_and_a_slope_a_slope() -> None:
    flat = np.full((30, 40, 3), 77, "uint8")
    np.testing.assert_allclose(resize(flat, 13, 17), 77.0)
    slope = np.broadcast_to(np.arange(40.0)[None, :, None], (30, 40, 3))
    half = resize(slope, 15, 20)
    np.testing.assert_allclose(np.diff(half[0, 1:-1, 0]), 2.0, atol=1e-5)
    np.testing.assert_allclose(resize(slope, 30, 40), slope, atol=1e-5)
