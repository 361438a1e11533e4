"""What holds for every repository, in a folder and on S3."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from octavo.errors import Conflict, Invalid, NotFound, OctavoError, Unavailable
from octavo.serving.model_config import ModelConfig, VersionPolicy
from octavo.serving.repository import Change, Repository
from octavo.settings import Settings, load_settings
from octavo.storage import Objects

if TYPE_CHECKING:
    from tests.conftest import S3Server


@dataclass
class Place:
    """A repository's URL, with direct access to its files, as of one who copies by hand."""

    url: str
    settings: Settings
    objects: Objects

    def open(self) -> Repository:
        return Repository.open(self.url, self.settings)

    def put(self, file: str, data: bytes | str) -> None:
        self.objects.put(file, data.encode() if isinstance(data, str) else data)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    settings = load_settings(tmp_path / "workspace")
    if request.param == "folder":
        url = str(tmp_path / "models")
    else:
        server: S3Server = request.getfixturevalue("s3_server")
        url = f"s3://{server.bucket()}/team/models"
        settings = settings.model_copy(update={"storage": server.settings})
    return Place(url, settings, Objects.open(url, settings.storage))


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with a model file and a tokenizer."""

    def make(content: str = "weights", **files: str) -> Path:
        folder = tmp_path / f"source-{len(list(tmp_path.glob('source-*')))}"
        (folder / "sub").mkdir(parents=True)
        (folder / "model.onnx").write_text(content)
        (folder / "sub" / "tokenizer.json").write_text("{}")
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(text)
        return folder

    return make


def test_publish_and_resolve(place: Place, source: Any) -> None:
    repository = place.open()
    assert repository.publish("m", source("one")) == "1"
    assert repository.publish("m", source("two")) == "2"
    found = repository.resolve("m")
    assert (found.name, found.version, found.config.backend) == ("m", "2", "onnxruntime")
    assert (found.folder / "model.onnx").read_text() == "two"
    assert (found.folder / "sub" / "tokenizer.json").read_text() == "{}"
    assert repository.names() == ["m"]
    assert repository.versions("m") == ["1", "2"]
    assert repository.availability("m") == {"1": "not served by the version policy", "2": ""}
    repository.verify("m")
    with pytest.raises(NotFound, match="not served"):
        repository.resolve("m", "1")
    assert place.open().resolve("m") == found


def test_a_digest_is_of_content_and_configuration(place: Place, source: Any) -> None:
    repository = place.open()
    repository.publish("a", source("same"))
    repository.publish("b", source("same"))
    repository.publish("c", source("other"))
    repository.publish("d", source("same"), ModelConfig(parameters={"pooling": "cls"}))
    digests = {name: repository.resolve(name).digest for name in "abcd"}
    assert digests["a"] == digests["b"]
    assert len(set(digests.values())) == 3


def test_a_copy_has_the_same_digest_and_its_own_name(place: Place, source: Any) -> None:
    repository = place.open()
    repository.publish("base", source("w"), ModelConfig(name="base", parameters={"task": "text-embedding"}))
    assert repository.copy("base", "tenant") == "1"
    first, second = repository.resolve("base"), repository.resolve("tenant")
    assert second.config.name == "tenant"
    assert second.config.parameters == {"task": "text-embedding"}
    assert second.digest == first.digest
    repository.verify("tenant")
    repository.remove("base")
    assert (place.open().resolve("tenant").folder / "model.onnx").read_text() == "w"


def test_a_configuration_that_differs_belongs_to_its_version(place: Place, source: Any) -> None:
    repository = place.open()
    repository.publish("m", source("1"), ModelConfig(max_batch_size=4, version_policy=VersionPolicy("all")))
    repository.publish("m", source("2"), ModelConfig(max_batch_size=16))
    repository.publish("m", source("3"))
    assert repository.resolve("m", "1").config.max_batch_size == 4
    assert repository.resolve("m", "2").config.max_batch_size == 16
    assert repository.resolve("m", "3").config.max_batch_size == 4
    assert repository.config("m").version_policy.kind == "all"
    assert repository.config("m", "2").version_policy.kind == "all"
    assert repository.config("m", "2").max_batch_size == 16
    for version in "123":
        repository.verify("m", version)


def test_a_later_configuration_does_not_govern_versions_without_one(place: Place, source: Any) -> None:
    repository = place.open()
    repository.publish("m", source("1"))
    first = repository.resolve("m", "1")
    repository.set_label("m", "first", "1")
    repository.publish("m", source("2"), ModelConfig(max_batch_size=16, parameters={"task": "text-embedding"}))
    repository.set_label("m", "second", "2")
    repository.publish("m", source("3"))
    for seen in (repository, place.open()):
        assert seen.resolve("m", "1").digest == first.digest
        assert seen.resolve("m", "3").config.max_batch_size == 0
        assert seen.resolve("m", "2").config.max_batch_size == 16
        assert seen.find_same("m", source("1")) == "1"
        assert seen.find_same("m", source("2"), ModelConfig(max_batch_size=16)) == ""
        for version in "123":
            seen.verify("m", version)


def test_versions_of_several_backends_without_a_configuration(place: Place, source: Any, tmp_path: Path) -> None:
    repository = place.open()
    repository.publish("m", source("1"))
    code = tmp_path / "code"
    code.mkdir()
    (code / "model.py").write_text("class TritonPythonModel: ...")
    repository.set_label("m", "first", "1")
    repository.publish("m", code)
    assert [repository.config("m", version).backend for version in repository.versions("m")] == [
        "onnxruntime",
        "python",
    ]


def test_a_configuration_that_came_with_a_version_is_enough_when_the_others_go(
    place: Place, source: Any, tmp_path: Path
) -> None:
    repository = place.open()
    repository.publish("m", source("1"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "weights.bin").write_text("weights")
    repository.publish("m", other, ModelConfig(backend="tenant", default_model_filename="weights.bin"))
    repository.remove("m", "1")
    repository = place.open()
    assert repository.resolve("m").version == "2"
    assert repository.config("m").backend == "tenant"


def test_a_configuration_in_the_source_is_taken(place: Place, source: Any) -> None:
    repository = place.open()
    repository.publish("m", source("1", config_pbtxt="max_batch_size: 4"))
    assert repository.config("m").max_batch_size == 4


@pytest.mark.parametrize(
    ("config", "files", "what"),
    [
        (ModelConfig(name="other"), {}, "'other'"),
        (ModelConfig(default_model_filename="net.onnx"), {}, "there is no net.onnx"),
        (ModelConfig(backend="python"), {}, "there is no model.py"),
        (None, {"config_pbtxt": "nonsense: 1"}, "nonsense"),
    ],
)
def test_what_is_no_version_is_not_published(
    place: Place, source: Any, config: ModelConfig | None, files: dict[str, str], what: str
) -> None:
    repository = place.open()
    with pytest.raises(Invalid, match=what):
        repository.publish("m", source("w", **files), config)
    assert repository.names() == []


def test_no_folder_or_version_to_publish(place: Place, source: Any, tmp_path: Path) -> None:
    repository = place.open()
    with pytest.raises(NotFound):
        repository.publish("m", tmp_path / "missing")
    with pytest.raises(Invalid):
        repository.publish("m", source(), version="01")
    with pytest.raises(Invalid, match=r"model\.onnx is empty"):
        repository.publish("m", source(""))
    assert repository.publish("m", source(), version="7") == "7"
    with pytest.raises(Conflict):
        repository.publish("m", source("other"), version="7")
    assert repository.publish("m", source()) == "8"


@pytest.mark.parametrize("name", ["../m", "a/b", "..", ".git", "", "m\0", "/etc", "a" * 200])
def test_names_that_lead_elsewhere_are_refused(place: Place, source: Any, name: str) -> None:
    repository = place.open()
    repository.publish("m", source())
    for use in (
        lambda: repository.publish(name, source()),
        lambda: repository.copy("m", name),
        lambda: repository.resolve(name),
        lambda: repository.config(name),
        lambda: repository.versions(name),
        lambda: repository.set_label(name, "default", "1"),
        lambda: repository.remove(name),
    ):
        with pytest.raises(Invalid, match="not a model name"):
            use()
    for version in ("../../m/1", "..", "1/../1"):
        with pytest.raises(NotFound):
            repository.resolve("m", version)
        with pytest.raises(NotFound):
            repository.remove("m", version)
        with pytest.raises(NotFound):
            repository.set_label("m", "stable", version)
    assert repository.names() == ["m"]


def test_unknown_models(place: Place) -> None:
    repository = place.open()
    assert repository.names() == []
    for use in (repository.resolve, repository.versions, repository.config, repository.remove, repository.roll_back):
        with pytest.raises(NotFound):
            use("nobody")


def test_two_publishes_at_once_get_two_versions(place: Place, source: Any) -> None:
    repositories = [place.open() for _ in range(4)]
    folders = [source(f"content {index}") for index in range(4)]
    versions: list[str] = []
    start = threading.Barrier(4)

    def publish(index: int) -> None:
        start.wait()
        versions.append(repositories[index].publish("m", folders[index], ModelConfig(version_policy=ALL)))

    ALL = VersionPolicy("all")
    threads = [threading.Thread(target=publish, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == ["1", "2", "3", "4"]
    repository = place.open()
    contents = set()
    for version in versions:
        repository.verify("m", version)
        contents.add((repository.resolve("m", version).folder / "model.onnx").read_text())
    assert contents == {f"content {index}" for index in range(4)}


def test_two_publishes_of_one_number(place: Place, source: Any) -> None:
    repositories = [place.open() for _ in range(2)]
    folders = [source("a"), source("b")]
    results: list[object] = []
    start = threading.Barrier(2)

    def publish(index: int) -> None:
        start.wait()
        try:
            results.append(repositories[index].publish("m", folders[index], version="1"))
        except Conflict as error:
            results.append(error)

    threads = [threading.Thread(target=publish, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("1") == 1
    assert sum(isinstance(result, Conflict) for result in results) == 1
    place.open().verify("m")


def test_roll_back_and_forward(place: Place, source: Any) -> None:
    repository = place.open()
    for content in "abc":
        repository.publish("m", source(content))
    assert repository.roll_back("m") == "2"
    assert repository.roll_back("m") == "1"
    with pytest.raises(Conflict):
        repository.roll_back("m")
    assert (place.open().resolve("m").folder / "model.onnx").read_text() == "a"
    assert repository.labels("m") == {"default": "1"}
    assert repository.resolve("m", "3").version == "3"
    repository.publish("m", source("d"))
    assert repository.resolve("m").version == "1"
    assert repository.roll_forward("m") == "4"
    assert repository.labels("m") == {}
    assert repository.versions("m") == ["1", "2", "3", "4"]


def test_labels(place: Place, source: Any) -> None:
    repository = place.open()
    for content in "abc":
        repository.publish("m", source(content))
    repository.set_label("m", "stable", "1")
    repository.set_label("m", "canary", "3")
    assert repository.resolve("m", "stable").version == "1"
    assert repository.resolve("m", "1").version == "1"
    assert repository.resolve("m").version == "3"
    assert repository.resolve("m").config.labels == {"stable": "1", "canary": "3"}
    with pytest.raises(NotFound):
        repository.set_label("m", "stable", "9")
    with pytest.raises(Invalid):
        repository.set_label("m", "2", "1")
    with pytest.raises(Conflict, match="stable"):
        repository.remove("m", "1")
    repository.set_label("m", "stable", "")
    repository.remove("m", "1")
    with pytest.raises(NotFound):
        repository.resolve("m", "stable")
    assert place.open().versions("m") == ["2", "3"]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": "../1"}', b"\xff"])
def test_broken_labels_are_reported(place: Place, source: Any, text: str | bytes) -> None:
    place.open().publish("m", source())
    place.put("m/labels.json", text)
    repository = place.open()
    with pytest.raises(Invalid, match=r"labels\.json"):
        repository.labels("m")
    with pytest.raises(OctavoError, match=r"labels\.json"):
        repository.resolve("m")


def test_labels_set_at_once_are_all_kept(place: Place, source: Any) -> None:
    repository = place.open()
    repository.publish("m", source())
    threads = [threading.Thread(target=repository.set_label, args=("m", f"l{index}", "1")) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert repository.labels("m") == {f"l{index}": "1" for index in range(6)}


def test_copied_in_by_hand(place: Place) -> None:
    place.put("m/3/model.onnx", "three")
    place.put("m/10/model.onnx", "ten")
    place.put("m/010/model.onnx", "no version")
    place.put("m/latest/model.onnx", "no version")
    place.put("m/0/model.onnx", "no version")
    place.put("readme.txt", "no model")
    place.put(".git/1/model.onnx", "no model")
    place.put("notes/a.txt", "no model")
    repository = place.open()
    assert repository.names() == ["m"]
    assert repository.versions("m") == ["3", "10"]
    found = repository.resolve("m")
    assert (found.folder / "model.onnx").read_text() == "ten"
    with pytest.raises(NotFound, match="manifest"):
        repository.verify("m")
    with pytest.raises(NotFound):
        repository.resolve("notes")
    place.put("m/10/model.onnx", "TEN")
    changed = place.open().resolve("m")
    assert (changed.folder / "model.onnx").read_text() == "TEN"
    assert changed.digest != found.digest


def test_a_model_that_is_a_folder_of_files(place: Place) -> None:
    place.put("m/config.pbtxt", 'backend: "onnxruntime"')
    place.put("m/1/model.onnx/graph.onnx", "graph")
    place.put("m/1/model.onnx/weights.bin", "weights")
    found = place.open().resolve("m")
    assert {file.name for file in (found.folder / "model.onnx").iterdir()} == {"graph.onnx", "weights.bin"}


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("version_policy { latest { num_versions: 2 } }", {"2", "3"}),
        ("version_policy { all { } }", {"1", "2", "3"}),
        ("version_policy { specific { versions: [ 1, 3 ] } }", {"1", "3"}),
        ("version_policy { specific { versions: 9 } }", set()),
    ],
)
def test_version_policies(place: Place, policy: str, served: set[str]) -> None:
    place.put("m/config.pbtxt", policy)
    for version in "123":
        place.put(f"m/{version}/model.onnx", version)
    repository = place.open()
    assert {version for version, reason in repository.availability("m").items() if not reason} == served
    for version in "123":
        if version in served:
            assert repository.resolve("m", version).version == version
        else:
            with pytest.raises(NotFound):
                repository.resolve("m", version)
    if served:
        assert repository.resolve("m").version == max(served)
    else:
        with pytest.raises(NotFound, match="no version"):
            repository.resolve("m")


def test_half_written_versions_are_not_served(place: Place, source: Any) -> None:
    repository = place.open()
    repository.publish("m", source("good"))
    place.put("m/2/tokenizer.json", "{}")
    place.put("m/3/model.onnx", "")
    repository = place.open()
    assert repository.versions("m") == ["1"]
    states = repository.availability("m")
    assert states["1"] == ""
    assert "there is no model.onnx" in states["2"]
    assert "model.onnx is empty" in states["3"]
    assert repository.resolve("m").version == "1"
    for version in "23":
        with pytest.raises(Unavailable, match="half-written"):
            repository.resolve("m", version)
        with pytest.raises(Invalid, match="half-written"):
            repository.set_label("m", "default", version)
    place.put("m/2/model.onnx", "now it is there")
    assert place.open().resolve("m").version == "2"


def test_a_model_without_any_whole_version(place: Place) -> None:
    place.put("m/config.pbtxt", 'backend: "onnxruntime"')
    place.put("m/1/tokenizer.json", "{}")
    place.put("none/config.pbtxt", 'backend: "onnxruntime"')
    repository = place.open()
    assert repository.names() == ["m", "none"]
    assert repository.versions("m") == repository.versions("none") == []
    with pytest.raises(Unavailable, match=r"no model\.onnx"):
        repository.resolve("m")
    with pytest.raises(NotFound, match="no version"):
        repository.resolve("none")


def test_a_published_file_that_vanished(place: Place, source: Any) -> None:
    place.open().publish("m", source())
    place.objects.delete("m/1/sub/tokenizer.json")
    with pytest.raises(Unavailable, match=r"sub/tokenizer\.json is missing"):
        place.open().resolve("m")


def test_a_tampered_file_is_named(place: Place, source: Any) -> None:
    place.open().publish("m", source("good"))
    place.put("m/1/model.onnx", "evil")
    repository = place.open()
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"tampered.*model\.onnx"):
            repository.resolve("m")
    place.put("m/1/model.onnx", "good")
    assert (place.open().resolve("m").folder / "model.onnx").read_text() == "good"


def test_an_added_file_is_named(place: Place, source: Any) -> None:
    place.open().publish("m", source("good"))
    place.put("m/1/model.py", "import os")
    with pytest.raises(Unavailable, match=r"tampered.*model\.py"):
        place.open().resolve("m")


@pytest.mark.parametrize("manifest", ["{", "[]", '{"files": {"a": 1}}', '{"files": 3}', "{}", b"\xff\xfe"])
def test_a_broken_manifest_is_no_manifest(place: Place, source: Any, manifest: str | bytes) -> None:
    place.open().publish("m", source("good"))
    place.put("m/1/.octavo.json", manifest)
    with pytest.raises(Unavailable, match="manifest"):
        place.open().resolve("m")


def test_a_broken_configuration_is_reported_and_harms_no_other(place: Place, source: Any) -> None:
    place.open().publish("good", source())
    for name, text in (("bad", "\nfoo: 1"), ("binary", b"\xff\xfe\x00"), ("other", 'name: "good"')):
        place.put(f"{name}/config.pbtxt", text)
        place.put(f"{name}/1/model.onnx", "w")
    place.put("huge/config.pbtxt", b"#" * (2**20 + 1))
    repository = place.open()
    assert repository.names() == ["bad", "binary", "good", "huge", "other"]
    assert repository.resolve("good").version == "1"
    with pytest.raises(Invalid, match=r"bad/config\.pbtxt:2"):
        repository.config("bad")
    for name in ("bad", "binary", "huge", "other"):
        assert repository.versions(name) == []
        with pytest.raises(OctavoError):
            repository.resolve(name)
    assert "foo" in repository.availability("bad")["1"]


def test_ensembles_need_no_files(place: Place, tmp_path: Path) -> None:
    text = 'platform: "ensemble" ensemble_scheduling { step { model_name: "m" } }'
    place.put("byhand/config.pbtxt", text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.pbtxt").write_text(text)
    repository = place.open()
    assert repository.publish("published", tmp_path / "empty") == "1"
    for name in ("byhand", "published"):
        found = repository.resolve(name)
        assert (found.version, found.config.backend) == ("1", "ensemble")
        assert found.config.ensemble[0].model == "m"


def test_changes(place: Place, source: Any) -> None:
    writer, reader = place.open(), place.open()
    writer.publish("a", source())
    first, snapshot = reader.changes()
    assert first == []
    assert reader.changes(snapshot)[0] == []
    writer.publish("a", source("2"))
    writer.publish("b", source())
    found, snapshot = reader.changes(snapshot)
    assert found == [Change("a", "changed"), Change("b", "added")]
    assert reader.resolve("a").version == "2"
    writer.set_label("a", "default", "1")
    found, snapshot = reader.changes(snapshot)
    assert found == [Change("a", "changed")]
    assert reader.resolve("a").version == "1"
    writer.remove("a")
    place.put("b/config.pbtxt", "max_batch_size: 2")
    found, snapshot = reader.changes(snapshot)
    assert found == [Change("a", "removed"), Change("b", "changed")]
    assert reader.resolve("b").config.max_batch_size == 2
    with pytest.raises(NotFound):
        reader.resolve("a")


def test_removing_all_versions_and_publishing_again(place: Place, source: Any) -> None:
    repository = place.open()
    repository.publish("m", source("a"), ModelConfig(max_batch_size=3))
    repository.remove("m", "1")
    assert repository.publish("m", source("b")) == "1"
    assert repository.config("m").max_batch_size == 3
    assert (repository.resolve("m").folder / "model.onnx").read_text() == "b"
    repository.remove("m")
    assert repository.names() == []


def test_an_unknown_kind_of_place(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="folder or s3"):
        Repository.open("gs://bucket/models", load_settings(tmp_path))


def test_the_manifest_is_plain_json(place: Place, source: Any) -> None:
    place.open().publish("m", source())
    manifest = json.loads(place.objects.get("m/1/.octavo.json"))
    assert set(manifest["files"]) == {"model.onnx", "sub/tokenizer.json"}


def test_a_labelled_config_round_trips_to_a_copy(place: Place, source: Any) -> None:
    repository = place.open()
    repository.publish("m", source())
    repository.set_label("m", "stable", "1")
    repository.copy("m", "n", "stable")
    assert repository.labels("n") == {}
    assert replace(repository.config("m"), name="n", labels={}) == repository.config("n")
