from __future__ import annotations

import asyncio
import csv
import gzip
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from octavo.errors import Invalid, NotFound
from octavo.serving.inference import InferRequest
from octavo.serving.repository import Repository
from octavo.serving.service import Serving
from octavo.serving.tenants.evaluation import Evaluation
from octavo.serving.tenants.examples import Examples, read_examples
from octavo.serving.tenants.listing import summarise, tenants
from octavo.serving.tenants.training import evaluate_tenant, train_tenant
from octavo.settings import load_settings

from ..live import TOKEN, octavo, octavo_up

Open = Callable[..., Awaitable[Serving]]

BANK = Examples(
    ("I lost my card", "my card was stolen", "where is my card", "transfer money abroad", "send money", "wire money"),
    ("card", "card", "card", "transfer", "transfer", "transfer"),
)
SHOP = Examples(
    (
        "return these shoes",
        "I want my money back",
        "refund please",
        "when will it arrive",
        "track my parcel",
        "weather",
    ),
    ("refund", "refund", "refund", "delivery", "delivery", "oos"),
)
SAID = {"card": "I cannot find my card", "transfer": "wire some money abroad"}


def texts(*given: str) -> dict[str, Any]:
    return {"text": np.array([[text.encode()] for text in given], dtype=object)}


def remembered(serving: Serving) -> list[Evaluation | None]:
    """The last evaluation of each tenant."""
    found = [one.evaluation for one in summarise(serving.repository, serving.documents)]
    assert all(last.at.utcoffset() == timedelta(0) for last in found if last)
    return [last and last.found for last in found]


def quiet(done: float, text: str) -> None:
    assert 0 <= done <= 1
    assert text


async def test_tenants_share_a_base_and_each_has_its_own_categories(
    minilm_repository: Path, open_serving: Open
) -> None:
    serving = await open_serving(minilm_repository)
    bank, adapter = await train_tenant(serving, "bank", "minilm", BANK, quiet)
    shop, _ = await train_tenant(serving, "shop", "minilm", SHOP, quiet)
    assert (bank.model, bank.version, bank.categories, shop.new) == ("bank-intent", "1", 2, True)
    assert (adapter.model, adapter.new) == ("bank-embedding", True)
    asked = [InferRequest("bank-intent", texts(*SAID.values())), InferRequest("shop-intent", texts("track my parcel"))]
    answers = await asyncio.gather(*(serving.infer(request) for request in asked * 8))
    for answer, alike in zip(answers[2:], answers, strict=False):
        assert answer.outputs["label"].tolist() == alike.outputs["label"].tolist()
    assert answers[0].outputs["label"].ravel().tolist() == [b"card", b"transfer"]
    assert answers[0].outputs["probabilities"].shape == (2, 2)
    assert answers[0].usage > 0
    assert answers[1].outputs["label"].ravel().tolist() == [b"delivery"]
    assert serving.statistics("minilm")[0].success.count >= 16  # every tenant's text went through the base


async def test_training_again_on_the_same_examples_changes_nothing(minilm_repository: Path, open_serving: Open) -> None:
    serving = await open_serving(minilm_repository)
    first, _ = await train_tenant(serving, "bank", "minilm", BANK, quiet)
    again, adapter = await train_tenant(serving, "bank", "minilm", BANK, quiet)
    assert (again.version, again.new, adapter.new) == (first.version, False, False)
    more = Examples((*BANK.texts, "block my card"), (*BANK.categories, "card"))
    assert (await train_tenant(serving, "bank", "minilm", more, quiet))[0].version == "2"
    assert [each.model for each in tenants(serving.repository)] == ["bank-embedding", "bank-intent"]
    listed = tenants(serving.repository)[1]
    assert (listed.tenant, listed.version, listed.base) == ("bank", "2", "minilm/1")
    assert (listed.kind, listed.examples, listed.categories) == ("intent", 7, 2)
    assert listed.bytes > 1000
    assert listed.trained > 1.7e9


async def test_an_evaluation_is_remembered_of_the_version_that_was_asked(
    minilm_repository: Path, open_serving: Open
) -> None:
    serving = await open_serving(minilm_repository)
    await train_tenant(serving, "bank", "minilm", BANK, quiet)
    found = await evaluate_tenant(serving, "bank", BANK, quiet)
    assert remembered(serving) == [found]
    await evaluate_tenant(serving, "bank", Examples(("block my card",), ("never",)), quiet, record=False)
    assert remembered(serving) == [found]
    serving.repository.remove("bank-intent")
    more = Examples((*BANK.texts, "block my card"), (*BANK.categories, "card"))
    assert (await train_tenant(serving, "bank", "minilm", more, quiet))[0].version == "1"
    assert remembered(serving) == [None]


async def test_an_embedding_of_the_client_is_not_made_again(minilm_repository: Path, open_serving: Open) -> None:
    serving = await open_serving(minilm_repository)
    await train_tenant(serving, "bank", "minilm", BANK, quiet)
    embedding = (await serving.infer(InferRequest("minilm", texts(SAID["card"])))).outputs["embedding"]
    before = serving.statistics("minilm")[0].success.count
    answer = await serving.infer(InferRequest("bank-intent", texts(SAID["card"]) | {"embedding": embedding}))
    assert answer.outputs["label"].ravel().tolist() == [b"card"]
    assert serving.statistics("minilm")[0].success.count == before


async def test_an_adapter_brings_texts_of_a_category_together(minilm_repository: Path, open_serving: Open) -> None:
    serving = await open_serving(minilm_repository)
    await train_tenant(serving, "bank", "minilm", BANK, quiet)
    asked = texts("I cannot find my card", "the card is gone", "wire some money abroad")
    plain = (await serving.infer(InferRequest("minilm", asked))).outputs["embedding"]
    adapted = (await serving.infer(InferRequest("bank-embedding", asked))).outputs["embedding"]
    again = (await serving.infer(InferRequest("bank-embedding", {"embedding": plain}))).outputs["embedding"]
    np.testing.assert_allclose(adapted, again, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(adapted, axis=1), 1, rtol=1e-5)
    before, after = plain @ plain.T, adapted @ adapted.T
    assert after[0, 1] - after[0, 2] > before[0, 1] - before[0, 2]
    with pytest.raises(Invalid, match="missing input 'text'"):
        await serving.infer(InferRequest("bank-embedding", {}))


async def test_asks_about_files_as_people_have_them(
    minilm_repository: Path, open_serving: Open, tmp_path: Path
) -> None:
    serving = await open_serving(minilm_repository)
    await train_tenant(serving, "shop", "minilm", SHOP, quiet)
    file = tmp_path / "asked.csv"

    async def ask(content: str) -> Any:
        file.write_bytes(content.encode())
        return await evaluate_tenant(serving, "shop", read_examples(file), quiet)

    found = await ask('\ufeffid,intent,text\r\n1,refund,"a refund,\nplease"\r\n2,oos,weather\r\n')
    assert found == Evaluation(1.0, 1.0, 1, 1)
    found = await ask("text,category\nrefund please,refund\ntrack my parcel,parcels\n")
    assert found == Evaluation(0.5, None, 2, 0, ("parcels",))
    assert await ask("category,text\noos,weather\n") == Evaluation(None, 1.0, 0, 1)


async def test_what_does_not_fit_is_refused(minilm_repository: Path, open_serving: Open) -> None:
    serving = await open_serving(minilm_repository)
    with pytest.raises(NotFound, match="no model"):
        await train_tenant(serving, "bank", "nothing", BANK, quiet)
    with pytest.raises(Invalid, match="not a model name"):
        await train_tenant(serving, "../bank", "minilm", BANK, quiet)
    with pytest.raises(Invalid, match="1 category"):
        await train_tenant(serving, "bank", "minilm", Examples(("a", "b"), ("one", "one")), quiet)
    with pytest.raises(Invalid, match="no category has two texts"):
        await train_tenant(serving, "bank", "minilm", Examples(("a", "b"), ("one", "two")), quiet)
    assert "bank-intent" not in serving.repository.names()
    with pytest.raises(NotFound):
        await evaluate_tenant(serving, "bank", BANK, quiet)
    await train_tenant(serving, "bank", "minilm", BANK, quiet)
    for inputs, what in (
        ({}, "missing input 'text'"),
        ({"text": np.ones((2, 1), np.float32)}, "BYTES"),
        ({"text": texts("a", "b")["text"].reshape(1, 2)}, r"\[n\] or \[n, 1\]"),
        (texts("a") | {"other": np.ones(1, np.float32)}, "unknown input 'other'"),
        ({"text": np.array([[b"\xff"]], dtype=object)}, "UTF-8"),
        ({"text": np.empty((0, 1), dtype=object)}, "no texts"),
        (texts("a") | {"embedding": np.ones((1, 3), np.float32)}, "shape"),
    ):
        with pytest.raises(Invalid, match=what):
            await serving.infer(InferRequest("bank-intent", inputs))


def test_command_line_and_http(minilm_repository: Path, tmp_path: Path, session_folder: Path) -> None:
    file = tmp_path / "shop.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "category"), *zip(SHOP.texts, SHOP.categories, strict=True)])
    environment = {"OCTAVO_SERVING__CACHE": str(session_folder / "cache"), "OCTAVO_WORKSPACE": str(minilm_repository)}
    done = octavo("tenants", "train", "shop", "--examples", str(file), "--json", **environment)
    assert [each["model"] for each in json.loads(done.stdout)] == ["shop-intent", "shop-embedding"], done.stderr
    told = json.loads(octavo("tenants", "eval", "shop", "--examples", str(file), "--json", **environment).stdout)
    assert told["accuracy"] > 0.7
    assert told["oos_recall"] == 1.0
    assert json.loads(octavo("tenants", "ls", "--json", **environment).stdout)[0]["tenant"] == "shop"
    with octavo_up(minilm_repository, OCTAVO_SERVING__CACHE=environment["OCTAVO_SERVING__CACHE"]) as server:
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["refund please"]}
        body = {"inputs": [tensor], "outputs": [{"name": "label"}]}
        headers = {"authorization": f"Bearer {TOKEN}"}
        answer = httpx.post(f"{server.url}/v2/models/shop-intent/infer", json=body, headers=headers, timeout=60)
        assert answer.json()["outputs"][0]["data"] == ["refund"], answer.text


async def test_real_questions_of_a_bank(minilm_repository: Path, open_serving: Open, shared_data: Path) -> None:
    file = shared_data / "serve/intents/banking77_train.csv.gz"
    if not file.is_file():
        pytest.skip("the shared data are not here")
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(stream)]
    chosen = sorted({category for _, category in rows})[:8]
    of = {name: [text for text, category in rows if category == name] for name in chosen}

    def part(start: int, stop: int) -> Examples:
        pairs = [(text, name) for name in chosen for text in of[name][start:stop]]
        return Examples(tuple(text for text, _ in pairs), tuple(name for _, name in pairs))

    serving = await open_serving(minilm_repository)
    await train_tenant(serving, "bank", "minilm", part(0, 10), quiet)
    found = await evaluate_tenant(serving, "bank", part(10, 20), quiet)
    assert found.accuracy is not None
    assert found.accuracy > 0.85


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"text,category\none,a\ntwo,a\nthree,oos\n", "the examples have 1 category beside 'oos'"),
        (b"text,category\none,a\n ,b\n", "the text is empty"),
        (b"text,category\n" + b"hi,x\n" * 1_000_000, "there are more than 100,000 examples"),
        ("text,category\nhé,x\n".encode("latin-1"), "byte 0xe9 at offset 15 is not UTF-8"),
    ],
)
def test_a_bad_file_is_one_clear_error(minilm_repository: Path, tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    where = {"OCTAVO_WORKSPACE": str(minilm_repository)}
    bad = octavo("tenants", "train", "shop", "--examples", str(tmp_path / "bad.csv"), **where)
    assert bad.returncode == 2
    assert what in bad.stderr
    assert "bad.csv" in bad.stderr or "category" in what
    assert len(bad.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in (minilm_repository / "models").iterdir()) == ["minilm", "minilm-int8"]


def test_a_row_limit_is_a_setting(minilm_repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "many.csv"
    file.write_text("text,category\n" + "hi,x\n" * 5)
    where = {"OCTAVO_WORKSPACE": str(minilm_repository), "OCTAVO_SERVING__MAX_EXAMPLES": "4"}
    done = octavo("tenants", "train", "bank", "--examples", str(file), **where)
    assert done.returncode == 2
    assert "more than 4 examples" in done.stderr
    assert Repository.open(str(minilm_repository / "models"), load_settings(minilm_repository)).names()[0] == "minilm"
