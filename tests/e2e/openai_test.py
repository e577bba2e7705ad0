"""The stock OpenAI client, told nothing but the platform's address and a key."""

from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest

from tests.platform import Platform, eventually

TABLE = b"text,mood\n" + b"a lovely day,good\nan awful day,bad\nlovely and warm,good\nawful and cold,bad\n" * 15


@pytest.fixture(scope="module")
def client(embedded_platform: Platform) -> Iterator[openai.OpenAI]:
    """Of a workspace that has the endpoint `moods`."""
    with embedded_platform.client() as la:
        la.datasets.upload("moods", TABLE, filename="moods.csv")
        job = la.training_jobs.create(
            dataset="moods@1", task="text_classification", target="mood", output_model="mood-model", architecture="rnn", epochs=3
        )
        job = la.training_jobs.wait(job, progress=False)
        la.endpoints.create("moods", job.model_version)
        la.endpoints.wait_ready("moods")
    with openai.OpenAI(base_url=f"{embedded_platform.url}/v1", api_key=embedded_platform.key, max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert "moods" in [model.id for model in client.models.list()]
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
    def used(http: httpx.Client) -> float:
        lines = http.get("/v1/usage").json()["lines"]
        return sum(line["quantity"] for line in lines if (line["metric"], line["resource"]) == ("tokens_in", "endpoints/moods"))

    with embedded_platform.http() as http:
        before = used(http)
        client.embeddings.create(model="moods", input="word " * 1000)
        assert eventually(lambda: used(http) >= before + 1000, 20)
