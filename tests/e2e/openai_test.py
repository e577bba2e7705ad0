"""The stock OpenAI client, told nothing but the platform's address and a key."""

from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.platform import Platform, eventually

TABLE = b"text,mood\n" + b"a lovely day,good\nan awful day,bad\nlovely and warm,good\nawful and cold,bad\n" * 15

# As a chat becomes a prompt.
COUNTING = b'talk\n"user: count\nassistant: one two three"\n"user: and back\nassistant: three two one"\n' * 20
USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "count"}]


@pytest.fixture(scope="module")
def client(embedded_platform: Platform) -> Iterator[openai.OpenAI]:
    """Of a workspace that has the endpoints `moods`, which tells texts apart, and `counter`, which writes."""
    with embedded_platform.client() as la:
        la.datasets.upload("moods", TABLE, filename="moods.csv")
        job = la.training_jobs.create(
            dataset="moods@1", task="text_classification", target="mood", output_model="mood-model", architecture="rnn", epochs=3
        )
        job = la.training_jobs.wait(job, progress=False)
        la.endpoints.create("moods", job.model_version)
        la.datasets.upload("counting", COUNTING, filename="counting.csv")
        writer = la.training_jobs.create(
            dataset="counting@1",
            task="text_generation",
            target="talk",
            output_model="counter-model",
            architecture="transformer",
            params={"width": 32, "heads": 2, "layers": 1, "max_length": 48, "dropout": 0},
            epochs=60,
            batch_size=8,
            learning_rate=0.01,
        )
        la.endpoints.create("counter", la.training_jobs.wait(writer, progress=False).model_version)
        la.endpoints.wait_ready("moods")
        la.endpoints.wait_ready("counter")
    with openai.OpenAI(base_url=f"{embedded_platform.url}/v1", api_key=embedded_platform.key, max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert {"moods", "counter"} <= {model.id for model in client.models.list()}
    model = client.models.retrieve("moods")
    assert (model.id, model.object) == ("moods", "model")
    assert model.created > 1_600_000_000
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("nothing-of-it")
    assert raised.value.code == "model_not_found"


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["a lovely day", "an awful day", "a lovely day"]
    as_base64 = client.embeddings.create(model="moods", input=texts)
    as_numbers = client.embeddings.create(model="moods", input=texts, encoding_format="float")
    one, two, three = ([*each.embedding] for each in as_base64.data)
    assert one == three != two
    np.testing.assert_allclose(as_numbers.data[1].embedding, two)
    assert as_base64.usage.prompt_tokens == as_base64.usage.total_tokens == 9


def test_a_model_that_the_platform_trained_chats(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="counter", messages=USER, temperature=0)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (" one two three", "stop")
    assert answer.usage and answer.usage.completion_tokens == 14
    parts = [chunk.choices[0] for chunk in client.chat.completions.create(model="counter", messages=USER, temperature=0, stream=True)]
    assert "".join(part.delta.content or "" for part in parts) == " one two three"
    assert parts[-1].finish_reason == "stop"


def test_completions(client: openai.OpenAI) -> None:
    prompt = "user: and back\nassistant:"
    answer = client.completions.create(model="counter", prompt=prompt, temperature=0, max_tokens=6)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" three", "length")
    stopped = client.completions.create(model="counter", prompt=prompt, temperature=0, max_tokens=50, stop=[" one"], stream=True)
    assert "".join(chunk.choices[0].text for chunk in stopped) == " three two"


def test_errors_are_the_client_s_own(client: openai.OpenAI, embedded_platform: Platform) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean moods") as missing:
        client.embeddings.create(model="mood", input="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="'moods' serves no model that writes text"):
        client.chat.completions.create(model="moods", messages=[{"role": "user", "content": "Good day"}])
    with pytest.raises(openai.BadRequestError) as wrong:
        client.embeddings.create(model="moods", input=[])
    assert wrong.value.param == "input"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").embeddings.create(model="moods", input="x")


def test_tokens_are_on_the_ledger(client: openai.OpenAI, embedded_platform: Platform) -> None:
    def used(http: httpx.Client, metric: str, resource: str) -> float:
        lines = http.get("/v1/usage").json()["lines"]
        return sum(line["quantity"] for line in lines if (line["metric"], line["resource"]) == (metric, resource))

    with embedded_platform.http() as http:
        read = used(http, "tokens_in", "endpoints/moods")
        client.embeddings.create(model="moods", input="word " * 1000)
        assert eventually(lambda: used(http, "tokens_in", "endpoints/moods") >= read + 1000, 20)
        written = used(http, "tokens_out", "endpoints/counter")
        with client.completions.create(model="counter", prompt="user", max_tokens=500, temperature=2, stream=True) as stream:
            came = sum(1 for chunk in stream if chunk.choices[0].finish_reason is None)
        assert came > 0
        assert eventually(lambda: used(http, "tokens_out", "endpoints/counter") >= written + came, 20)
