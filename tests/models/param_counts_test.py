"""Parameter counts: published figure == closed form written here == what the module declares."""

import pytest

import models


def _gpt2(vocab: int, positions: int, width: int, layers: int) -> int:
    attention = 4 * width * width + 4 * width
    mlp = 2 * width * 4 * width + 4 * width + width
    norms = 2 * 2 * width
    return (vocab + positions) * width + layers * (attention + mlp + norms) + 2 * width


def _llama(vocab: int, width: int, layers: int, heads: int, kv_heads: int, hidden: int) -> int:
    kv_width = width // heads * kv_heads
    attention = 2 * width * width + 2 * width * kv_width
    return 2 * vocab * width + layers * (attention + 3 * width * hidden + 2 * width) + width


def _mixtral(vocab: int, width: int, layers: int, heads: int, kv_heads: int, hidden: int) -> int:
    experts = 8
    more = (experts - 1) * 3 * width * hidden + width * experts  # the rest of them, and the router
    return _llama(vocab, width, layers, heads, kv_heads, hidden) + layers * more


def _t5(vocab: int, width: int, layers: int, inner: int, hidden: int, biases: int) -> int:
    attention, mlp = 4 * width * inner, 3 * width * hidden
    encoder, decoder = attention + mlp + 2 * width, 2 * attention + mlp + 3 * width
    return 2 * vocab * width + layers * (encoder + decoder) + 2 * width + 2 * biases


def _vit(image: int, patch: int, width: int, layers: int, hidden: int, classes: int) -> int:
    patches = 3 * patch * patch * width + width
    positions = (image // patch) ** 2 * width
    attention = 4 * width * width + 4 * width
    mlp = 2 * width * hidden + hidden + width
    head = width * classes + classes
    return patches + positions + layers * (attention + mlp + 4 * width) + 2 * width + head


def _mixer(
    image: int, patch: int, width: int, layers: int, tokens: int, channels: int, classes: int
) -> int:
    patches = (image // patch) ** 2
    mixing = 2 * patches * tokens + tokens + patches + 2 * width * channels + channels + width
    stem, head = 3 * patch * patch * width + width, width * classes + classes
    return stem + layers * (mixing + 4 * width) + 2 * width + head


def _bottleneck_resnet(stages: tuple[int, ...], classes: int) -> int:
    total, channels = 7 * 7 * 3 * 64 + 2 * 64, 64
    for stage, blocks in enumerate(stages):
        narrow = 64 * 2**stage
        wide = 4 * narrow
        for block in range(blocks):
            total += channels * narrow + 9 * narrow * narrow + narrow * wide
            total += 2 * (narrow + narrow + wide)
            if block == 0:
                total += channels * wide + 2 * wide
            channels = wide
    return total + channels * classes + classes


def _basic_resnet(width: int, num_stages: int, classes: int) -> int:
    total, channels = 9 * 3 * width + 2 * width, width
    for stage in range(num_stages):
        features = width * 2**stage
        total += 9 * channels * features + 9 * features * features + 2 * 2 * features
        if channels != features:
            total += channels * features + 2 * features
        channels = features
    return total + channels * classes + classes


GPT2_VOCAB, LLAMA_VOCAB = 50257, 128256

# name, closed form, published figure (None where there is none to compare with)
COUNTS = [
    ("gpt2_tiny", _gpt2(256, 128, 128, 4), None),
    ("gpt2_small", _gpt2(GPT2_VOCAB, 1024, 768, 12), 124_439_808),
    ("gpt2_medium", _gpt2(GPT2_VOCAB, 1024, 1024, 24), 354_823_168),
    ("gpt2_large", _gpt2(GPT2_VOCAB, 1024, 1280, 36), 774_030_080),
    ("gpt2_xl", _gpt2(GPT2_VOCAB, 1024, 1600, 48), 1_557_611_200),
    ("llama3_tiny", _llama(256, 64, 2, 8, 4, 160), None),
    ("llama3_8b", _llama(LLAMA_VOCAB, 4096, 32, 32, 8, 14336), 8_030_261_248),
    ("llama3_70b", _llama(LLAMA_VOCAB, 8192, 80, 64, 8, 28672), 70_553_706_496),
    # What benchmarks/published_model.py counts for the same sizes.
    ("maxtext_32b", _llama(32000, 8192, 32, 64, 64, 28672), 31_663_333_376),
    # Published: 12 l h^2 (1 + 13 / 12h + (V + s) / 12lh) = 1008.0 billion, the last norm left out.
    ("dense_1t", _gpt2(51200, 2048, 25600, 128), 1_008_038_707_200 + 2 * 25600),
    # Published: 59.9 and 208.2 million, the classifier's included.
    ("mixer_tiny", _mixer(32, 4, 64, 2, 32, 256, 16), None),
    ("mixer_b16", _mixer(224, 16, 768, 12, 384, 3072, 1000), 59_880_472),
    ("mixer_l16", _mixer(224, 16, 1024, 24, 512, 4096, 1000), 208_196_168),
    ("mixtral_tiny", _mixtral(256, 64, 2, 8, 4, 160), None),
    ("mixtral_8x7b", _mixtral(32000, 4096, 32, 32, 8, 14336), 46_702_792_704),
    ("t5_tiny", _t5(256, 64, 2, 64, 160, 8 * 8), None),
    ("t5_v1_1_large", _t5(32128, 1024, 24, 1024, 2816, 32 * 16), 783_150_080),
    ("mlp", 64 * 256 + 256 + 256 * 256 + 256 + 256 * 16 + 16, None),
    ("vit_tiny", _vit(32, 4, 64, 2, 256, 16), None),
    # The published model has a class token and its position: 2 * 1024 more.
    ("vit_l16", _vit(224, 16, 1024, 24, 4096, 1000), 304_326_632 - 2 * 1024),
    ("resnet_tiny", _basic_resnet(16, 3, 16), None),
    ("resnet50", _bottleneck_resnet((3, 4, 6, 3), 1000), 25_557_032),
]


@pytest.mark.parametrize(("name", "closed_form", "published"), COUNTS)
def test_count(name, closed_form, published):
    assert published in (None, closed_form)
    assert models.get(name).num_params == closed_form


def test_every_model_is_counted():
    assert {name for name, _, _ in COUNTS} == set(models.names())


def test_vit_with_a_class_token_has_the_published_count():
    assert models.get("vit_l16", pooling="class_token").num_params == 304_326_632


def test_gpt2_tiny_is_of_the_promised_size():
    assert 0.8e6 < models.get("gpt2_tiny").num_params < 0.9e6


def test_padding_the_vocabulary_adds_rows_of_the_tied_table_only():
    plain, padded = models.get("gpt2_small"), models.get("gpt2_small", pad_vocab_to=128)
    assert padded.num_params - plain.num_params == (50304 - 50257) * 768
