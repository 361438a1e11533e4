"""Serving's jobs, run by a real worker process."""

import json

import pytest

from octavo.jobs import Jobs
from octavo.serving.model_config import ModelConfig
from octavo.serving.repository import Repository
from octavo.settings import load_settings


@pytest.fixture
def jobs(tmp_path):
    settings = load_settings(tmp_path)
    opened = Jobs.open(settings, modules=["octavo.serving.work"])
    opened.supervise()
    yield settings, opened
    opened.close()


def test_verify_names_the_damaged_version_and_only_that(jobs, tmp_path):
    settings, opened = jobs
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.onnx").write_bytes(b"weights")
    repository = Repository.open(settings.repository_url, settings)
    for name in ("whole", "damaged"):
        repository.publish(name, source, ModelConfig(backend="onnxruntime"))
    repository.publish("whole", source)
    repository.publish("damaged", source)  # version 1 is not served any more, but may be wanted again
    (tmp_path / "models" / "damaged" / "1" / "model.onnx").write_bytes(b"weightz")
    done = opened.wait(opened.submit("models.verify"), timeout=120)
    assert done.state == "succeeded", done.error
    assert list(done.result) == ["damaged/1"]
    assert "model.onnx" in done.result["damaged/1"]
    json.dumps(done.result)


def test_adding_from_a_folder_that_is_no_model_fails_with_one_clear_sentence(jobs, tmp_path):
    settings, opened = jobs
    (tmp_path / "empty").mkdir()
    done = opened.wait(opened.submit("models.add", {"name": "x", "source": str(tmp_path / "empty")}), timeout=120)
    assert done.state == "failed"
    assert "config.json" in str(done.error)
    assert Repository.open(settings.repository_url, settings).names() == []
