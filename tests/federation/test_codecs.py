"""Every codec against a slow loop, its bound, and what a damaged or hostile payload may claim."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from federation.codecs import CODECS, Codec, CodecError, Payload, make_codec
from federation.coders import Int8Blocks, TopK
from federation.initial import initial_model
from federation.selection import Entries, ModelEntries, model_entries
from federation.weights import check_weights, flatten_weights, unflatten_weights
from tests.small_run import small_settings

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
EPSILON = 2.0**-24
"""Half a unit in the last place of a float32, relative."""


def _entries(total: int, *, frozen: int = 0, statistics: int = 0) -> ModelEntries:
    """A model whose first entries are frozen and whose last are running means, then running variances."""

    def between(start: int, end: int) -> Entries:
        return Entries(total=total, runs=((start, end),) if start < end else ())

    edge = total - statistics
    return ModelEntries(
        trained=between(frozen, total),
        parameters=between(frozen, edge),
        means=between(edge, edge + statistics // 2),
        variances=between(edge + statistics // 2, total),
        batch_norm=between(edge, total),
    )


def _update(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights after local work, and the global model before."""
    random = np.random.default_rng(seed)
    reference = random.normal(size=size).astype(np.float32)
    return reference + random.normal(scale=0.01, size=size).astype(np.float32), reference


def _through(codec: Codec, weights: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Encoded, carried by Flower's Array, decoded."""
    payload, _ = codec.encode(weights, reference, None)
    carried = Array(payload.to_array()).numpy()
    assert carried.size == payload.num_bytes
    return codec.decode(Payload.from_array(carried), reference)


SOME = st.floats(-100, 100, width=32)
VALUES = arrays(np.float32, st.integers(1, 700), elements=SOME)


@PROPERTY
@given(VALUES, st.integers(0, 99))
def test_fp32_is_exact(weights: np.ndarray, seed: int) -> None:
    reference = np.random.default_rng(seed).normal(size=weights.size).astype(np.float32)
    codec = make_codec("fp32", _entries(weights.size))
    assert _through(codec, weights, reference).tobytes() == weights.tobytes()


@PROPERTY
@given(VALUES, st.integers(0, 99))
def test_bf16_keeps_eight_bits_of_the_difference(weights: np.ndarray, seed: int) -> None:
    reference = np.random.default_rng(seed).normal(size=weights.size).astype(np.float32)
    decoded = _through(make_codec("bf16", _entries(weights.size)), weights, reference)
    difference = weights.astype(np.float64) - reference
    rounding = 2 * EPSILON * (np.abs(difference) + np.abs(decoded))
    assert (np.abs(decoded.astype(np.float64) - weights) <= 2.0**-8 * np.abs(difference) + rounding + 1e-40).all()


@PROPERTY
@given(VALUES, st.integers(1, 300))
def test_an_int8_step_is_at_most_half_a_scale_off(values: np.ndarray, block_size: int) -> None:
    coder = Int8Blocks(block_size=block_size)
    body, sent = coder.pack(values)
    assert sent.tobytes() == coder.unpack(body, values.size).tobytes()
    levels = int(body[-(-values.size // block_size) * 4])
    for start in range(0, values.size, block_size):  # a loop over the blocks, in double precision
        block, got = values[start : start + block_size], sent[start : start + block_size]
        scale = float(np.abs(block).max()) / levels
        error = np.abs(block.astype(np.float64) - got)
        assert (error <= scale / 2 * (1 + 1e-5) + 127 * np.finfo(np.float32).tiny).all()


def test_int8_rounds_to_the_nearest_of_127_steps() -> None:
    values = np.random.default_rng(5).normal(size=20_000).astype(np.float32)
    body, sent = Int8Blocks(block_size=256).pack(values)
    assert body[79 * 4] == 127
    scale = np.abs(values[:256]).max() / np.float32(127)
    by_hand = [float(scale) * round(float(value) / float(scale)) for value in values[:256]]
    np.testing.assert_allclose(sent[:256], by_hand, rtol=1e-6)
    assert Int8Blocks().pack(np.zeros(300, np.float32))[1].tobytes() == np.zeros(300, np.float32).tobytes()


@PROPERTY
@given(VALUES, st.floats(0.001, 1))
def test_top_k_keeps_the_largest_exactly(values: np.ndarray, fraction: float) -> None:
    coder = TopK(kept_fraction=fraction)
    body, sent = coder.pack(values)
    assert sent.tobytes() == coder.unpack(body, values.size).tobytes()
    count = int(np.ceil(fraction * values.size))
    order = sorted(range(values.size), key=lambda entry: (-abs(float(values[entry])), entry))
    expected = np.zeros_like(values)
    expected[order[:count]] = values[order[:count]]
    np.testing.assert_array_equal(sent, expected)


@pytest.mark.parametrize("name", ["int8", "topk"])
@pytest.mark.parametrize("frozen", [0, 1000])
def test_what_was_sent_and_what_is_kept_is_what_should_have_been_sent(name: str, frozen: int) -> None:
    size, rounds = 5000, 12
    codec = make_codec(name, _entries(size, frozen=frozen), kept_fraction=0.02)
    random, residual = np.random.default_rng(7), None
    reference, wanted, sent = np.zeros(size, np.float32), np.zeros(size), np.zeros(size)
    for _ in range(rounds):
        difference = random.normal(size=size).astype(np.float32)
        difference[:frozen] = 0
        # From zero the decoded weights are what was sent, without a rounding of their own.
        payload, residual = codec.encode(difference, reference, residual)
        sent += codec.decode(payload, reference)
        wanted += difference
    kept = np.zeros(size)
    kept[frozen:] = residual
    assert np.abs(sent + kept - wanted).max() < rounds * EPSILON * 2 * np.abs(wanted).max() + 1e-5
    assert np.abs(sent - wanted).max() > 1e-3  # without the residual it is not


@PROPERTY
@given(st.integers(1, 6), st.integers(0, 999), st.sampled_from(["bf16", "int8", "topk"]))
def test_the_mean_of_decoded_updates_is_near_the_uncompressed_mean(sites: int, seed: int, name: str) -> None:
    """The mean's error is at most the weighted mean of the sites' own bounds."""
    size, random = 600, np.random.default_rng(seed)
    codec, counts = make_codec(name, _entries(size, statistics=20)), random.integers(1, 100, size=sites)
    reference = np.abs(random.normal(size=size)).astype(np.float32) + 1
    updates = [reference * np.float32(1 + 0.1 * random.random()) for _ in range(sites)]
    updates = [update + random.normal(scale=0.05, size=size).astype(np.float32) for update in updates]
    mean = np.average(np.array(updates, np.float64), axis=0, weights=counts)
    decoded = np.average([_through(codec, update, reference) for update in updates], axis=0, weights=counts)
    bounds = np.array([_bound(name, update - reference) for update in updates])
    allowed = np.average(bounds, axis=0, weights=counts) + 8 * EPSILON * np.abs(mean).max()
    assert (np.abs(decoded - mean)[:-20] <= allowed[:-20]).all()
    np.testing.assert_allclose(decoded[-20:], mean[-20:], rtol=1e-12)


def _bound(name: str, difference: np.ndarray) -> np.ndarray:
    """How far an entry may be off, from the formulas of docs/communication.md."""
    if name == "bf16":
        return np.abs(difference) * 2.0**-8
    coded = difference[:-20]
    if name == "topk":
        least = np.sort(np.abs(coded))[-int(np.ceil(0.05 * coded.size))]
        return np.full(difference.size, least)
    levels = 63  # the worse of the two
    blocks = [coded[start : start + 256] for start in range(0, coded.size, 256)]
    bounds = [np.full(block.size, np.abs(block).max() / levels / 2) for block in blocks]
    return np.concatenate([*bounds, np.zeros(20)])


@pytest.mark.parametrize("name", ["int8", "topk"])
@pytest.mark.parametrize("kind", ["normal", "uniform", "laplace", "signs"])
def test_at_most_a_quarter_of_the_bytes(name: str, kind: str) -> None:
    size, random = 100_000, np.random.default_rng(0)
    drawn = {
        "normal": random.normal(size=size),
        "uniform": random.uniform(-1, 1, size=size),  # no code makes 8 bits of this shorter
        "laplace": random.laplace(size=size),
        "signs": random.choice([-1.0, 1.0], size=size),  # an Adam step
    }[kind]
    difference = drawn.astype(np.float32) * np.float32(1e-3)
    codec, reference = make_codec(name, _entries(size, statistics=200)), np.ones(size, np.float32)
    payload, _ = codec.encode(reference + difference, reference, None)
    assert payload.to_array().nbytes == payload.num_bytes <= size * 4 / 4
    plain, _ = make_codec("fp32", _entries(size)).encode(reference, reference, None)
    assert plain.num_bytes == 4 * size + 72
    half, _ = make_codec("bf16", _entries(size)).encode(reference, reference, None)
    assert half.num_bytes == 2 * size + 72


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("freeze", ["true", "false"])
def test_a_model_travels_without_what_is_frozen(name: str, freeze: str) -> None:
    model = initial_model(small_settings(f"model.freeze_backbone={freeze}"))
    entries, reference = model_entries(model), flatten_weights(model)
    weights = reference + np.random.default_rng(1).normal(scale=1e-3, size=reference.size).astype(np.float32)
    small = entries.variances.take(weights) * np.float32(1e-20)
    entries.variances.put(weights, np.maximum(small, np.float32(1e-30)))
    codec = make_codec(name, entries)
    decoded = _through(codec, weights, reference)
    check_weights(model, decoded)
    rests = ~entries.trained.mask()
    assert decoded[rests].tobytes() == reference[rests].tobytes()
    exact = entries.trained.both(entries.statistics)
    assert exact.take(decoded).tobytes() == exact.take(weights).tobytes()
    assert (entries.variances.take(decoded) > 0).all()
    payload, _ = codec.encode(weights, reference, None)
    assert (payload.num_compressed, payload.num_exact) == (entries.trained.size - exact.size, exact.size)
    assert payload.num_bytes <= weights.nbytes * {"fp32": 1, "bf16": 0.51, "int8": 0.25, "topk": 0.25}[name] + 72
    unflatten_weights(model, decoded, keep_frozen=True)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


SIZE = 1000
ENTRIES = _entries(SIZE, frozen=100, statistics=10)
NUM_CODED = SIZE - 110


def _payload(name: str) -> tuple[Codec, Payload, np.ndarray]:
    codec = make_codec(name, ENTRIES)
    weights, reference = _update(SIZE)
    return codec, codec.encode(weights, reference, None)[0], reference


def _with_body(payload: Payload, start: int, values: np.ndarray) -> Payload:
    """A hostile payload: the body changed, the checksum made again by `to_array`."""
    body, changed = payload.body.copy(), values.view(np.uint8)
    body[start : start + changed.size] = changed
    return Payload.from_array(replace(payload, body=body).to_array())


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("place", [0, 5, 9, 30, 50, 70, 72, 400, -1])
def test_a_flipped_bit_is_noticed(name: str, place: int) -> None:
    _, payload, _ = _payload(name)
    array = payload.to_array()
    array[place] ^= 4
    with pytest.raises(CodecError, match="expected "):
        Payload.from_array(array)


@pytest.mark.parametrize("name", CODECS)
def test_short_and_long_payloads_are_refused(name: str) -> None:
    codec, payload, reference = _payload(name)
    array = payload.to_array()
    for wrong in (array[:-1], np.append(array, np.uint8(0)), array[:71], array[:0]):
        with pytest.raises(CodecError, match=r"expected .*, found \d+"):
            Payload.from_array(wrong)
    with pytest.raises(CodecError, match=r"expected a payload as uint8 \[bytes\], found float32 \[3\]"):
        Payload.from_array(np.zeros(3, np.float32))
    for body in (payload.body[:-1], np.append(payload.body, np.uint8(0)), payload.body[:39], payload.body[:41]):
        changed = Payload.from_array(replace(payload, body=np.ascontiguousarray(body)).to_array())
        with pytest.raises(CodecError, match=r"expected "):
            codec.decode(changed, reference)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codec": "bf16"}, "expected a payload of codec int8, found bf16"),
        ({"codec": "\x00\x01nonsense"}, "expected a payload of codec int8"),
        ({"version": 2}, "expected a payload of version 1, found 2; update the older side"),
        ({"total": SIZE + 1}, f"expected a payload of total {SIZE}, found {SIZE + 1}"),
        ({"num_compressed": 2**60}, f"expected a payload of num_compressed {NUM_CODED}, found {2**60}"),
        ({"num_exact": 12}, "expected a payload of num_exact 10, found 12"),
        ({"setting": 128}, "expected a payload of setting 256, found 128"),
    ],
)
def test_a_header_of_something_else_is_refused(change: dict, words: str) -> None:
    codec, payload, reference = _payload("int8")
    with pytest.raises(CodecError, match=words):
        codec.decode(Payload.from_array(replace(payload, **change).to_array()), reference)


SCALES, LEVELS, STREAM = 40, 40 + 16, 40 + 17
POSITIONS, KEPT = 40, 40 + 45 * 4


@pytest.mark.parametrize(
    ("name", "start", "values", "words"),
    [
        ("fp32", 400, np.float32([np.nan]), "expected finite weights in the payload, found 1 that are not"),
        ("fp32", 0, np.float32([np.inf]), "expected finite weights in the payload"),
        ("bf16", 40, np.uint16([0x7F80]), "expected finite weights in the payload, found 1"),
        ("int8", SCALES, np.float32([np.nan]), "expected finite scales of zero or more"),
        ("int8", SCALES, np.float32([-1]), "expected finite scales of zero or more"),
        ("int8", SCALES, np.float32([3e38]), "expected finite weights in the payload"),
        ("int8", LEVELS, np.uint8([128]), "expected 127 or 63 levels, found 128"),
        ("int8", STREAM, np.uint8([1, 2, 3]), "expected a deflated stream of 890 steps, found a damaged one"),
        ("topk", POSITIONS, np.uint32([5, 4]), "expected strictly increasing positions"),
        ("topk", POSITIONS, np.uint32([5, 5]), "expected strictly increasing positions"),
        ("topk", KEPT - 4, np.uint32([NUM_CODED]), f"expected positions below {NUM_CODED}, found {NUM_CODED}"),
        ("topk", KEPT - 4, np.uint32([2**32 - 1]), f"expected positions below {NUM_CODED}"),
        ("topk", KEPT, np.float32([np.nan]), "expected finite weights in the payload"),
    ],
)
def test_a_hostile_body_is_refused(name: str, start: int, values: np.ndarray, words: str) -> None:
    codec, payload, reference = _payload(name)
    with pytest.raises(CodecError, match=words):
        codec.decode(_with_body(payload, start, values), reference)


@pytest.mark.parametrize(
    ("steps", "behind", "words"),
    [
        (np.zeros(50_000_000, np.int8), b"", "stream of 890 steps, found more"),
        (np.zeros(889, np.int8), b"", "stream of 890 steps, found fewer"),
        (np.zeros(890, np.int8), b"more", "expected nothing after the steps, found 4 bytes"),
        (np.full(890, -128, np.int8), b"", "expected steps from -127 to 127"),
    ],
)
def test_a_stream_of_something_else_is_refused(steps: np.ndarray, behind: bytes, words: str) -> None:
    codec, payload, reference = _payload("int8")
    stream = np.frombuffer(zlib.compress(steps.tobytes()) + behind, np.uint8)
    body = np.concatenate([payload.body[:STREAM], stream])
    body[LEVELS] = 127
    with pytest.raises(CodecError, match=words):
        codec.decode(replace(payload, body=body), reference)


@pytest.mark.parametrize("name", CODECS)
@settings(deadline=None, derandomize=True, max_examples=100)
@given(body=st.binary(max_size=5000), setting=st.sampled_from([0, 45, 256]))
def test_any_bytes_are_read_or_refused_by_name(name: str, body: bytes, setting: int) -> None:
    codec, payload, reference = _payload(name)
    changed = replace(payload, body=np.frombuffer(body, np.uint8), setting=setting)
    try:
        decoded = codec.decode(changed, reference)
    except CodecError:
        return
    assert np.isfinite(decoded).all()


@given(st.binary(max_size=200))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_any_array_is_a_payload_or_refused_by_name(noise: bytes) -> None:
    for header in (b"", b"DPFC", b"DPFC" + struct.pack("<II", 0, 1)):
        with pytest.raises(CodecError):
            Payload.from_array(np.frombuffer(header + noise, np.uint8))


def test_what_cannot_be_encoded_is_refused() -> None:
    codec = make_codec("int8", ENTRIES)
    weights, reference = _update(SIZE)
    broken = weights.copy()
    broken[500] = np.nan
    with pytest.raises(CodecError, match="expected finite weights, found 1 that are not"):
        codec.encode(broken, reference, None)
    with pytest.raises(CodecError, match=r"expected reference as float32 \[1000\], found float64 \[1000\]"):
        codec.encode(weights, reference.astype(np.float64), None)
    huge = np.full(SIZE, 3e38, np.float32)
    with pytest.raises(CodecError, match="expected finite differences from the global model"):
        codec.encode(huge, -huge, None)
    with pytest.raises(CodecError, match=r"expected a residual as float32 \[890\], found float32 \[1000\]"):
        codec.encode(weights, reference, weights)
    with pytest.raises(CodecError, match="bf16 keeps no residual, but one came"):
        make_codec("bf16", ENTRIES).encode(weights, reference, weights[:NUM_CODED])
    with pytest.raises(CodecError, match="expected differences within bfloat16's range"):
        make_codec("bf16", ENTRIES).encode(np.full(SIZE, 3.4e38, np.float32), np.zeros(SIZE, np.float32), None)
    with pytest.raises(CodecError, match="expected a codec of fp32, bf16, int8, topk, found 'zip'"):
        make_codec("zip", ENTRIES)
    with pytest.raises(CodecError, match="expected a block size of 1 or more, found 0"):
        make_codec("int8", ENTRIES, block_size=0)
    with pytest.raises(CodecError, match="expected a kept fraction above 0 and at most 1, found 0"):
        make_codec("topk", ENTRIES, kept_fraction=0)


def test_encoding_leaves_its_inputs_alone() -> None:
    weights, reference = _update(SIZE)
    residual = np.ones(NUM_CODED, np.float32)
    kept = weights.tobytes(), reference.tobytes(), residual.tobytes()
    for name in ("int8", "topk"):
        codec = make_codec(name, ENTRIES)
        payload, _ = codec.encode(weights, reference, residual)
        codec.decode(payload, reference)
        assert (weights.tobytes(), reference.tobytes(), residual.tobytes()) == kept
