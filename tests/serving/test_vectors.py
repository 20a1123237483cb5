"""Models that do not write, behind the server: vectors and classes equal those of `tunesmith embed` and `classify`."""

import base64
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from matrix import word_tokenizer
from running_server import served

from tunesmith.inference.model import load

TEXTS = ["good film w3", "bad w7 w8 w1", "it is w2", *["w4"] * 10]


def test_embeddings_are_those_of_embed_in_both_encodings(reading: Path) -> None:
    expected = load(reading / "vectors", precision="fp32").embed(TEXTS)
    with served(reading / "vectors") as server, server.client() as client:
        for encoding in ("float", "base64"):
            found = client.embeddings.create(model="tiny", input=TEXTS, encoding_format=encoding)  # type: ignore[call-overload]
            vectors = [each.embedding for each in found.data]
            if encoding == "base64":
                vectors = [np.frombuffer(base64.b64decode(each), "<f4") for each in vectors]
            np.testing.assert_array_equal(np.array(vectors, np.float32), expected)
        assert found.usage.prompt_tokens == sum(len(word_tokenizer()(text)["input_ids"]) for text in TEXTS)
        with pytest.raises(openai.BadRequestError, match="dimensions is not supported"):
            client.embeddings.create(model="tiny", input="a", dimensions=3)
        with pytest.raises(openai.BadRequestError, match=r"input 1 has .* tokens, and the model reads at most"):
            client.embeddings.create(model="tiny", input=["w1", "w1 " * 600])
        with pytest.raises(openai.BadRequestError, match="input 0 is empty"):
            client.embeddings.create(model="tiny", input=[" "])
        with pytest.raises(openai.BadRequestError, match="tiny embeds texts, so /v1/chat/completions is not for it"):
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])


def test_classify_tells_labels_with_their_probabilities(reading: Path) -> None:
    expected = load(reading / "classes", precision="fp32").classify(TEXTS)
    with served(reading / "classes") as server:
        body = json.dumps({"model": "tiny", "input": TEXTS}).encode()
        request = urllib.request.Request(f"{server.address}/v1/classify", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            found: Any = json.load(response)
    for each, predictions in zip(found["data"], expected, strict=True):
        assert [label["label"] for label in each["labels"]] == [prediction.label for prediction in predictions]
        values = [prediction.value for prediction in predictions]
        assert [label["probability"] for label in each["labels"]] == pytest.approx(values)
